"""The command ``medvid-run``: one small module a sub-command. Nothing heavy is imported before it is needed."""
