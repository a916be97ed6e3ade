"""Small videos of somebody who walks, for the tests beside."""

from pathlib import Path

import av
import numpy as np


def scene(count=40, *, step=2, size=(96, 160), start=12, who=(60, 16), stands=False, camera=0) -> list[np.ndarray]:
    """Pictures [H,W,3] of a figure, so high and wide, that walks across a textured wall."""
    height, width = size
    rng = np.random.default_rng(0)
    wall = np.repeat(np.repeat(rng.integers(60, 180, (height // 8, width // 4, 3), np.uint8), 8, 0), 8, 1)
    cloth = rng.integers(200, 255, (who[0], who[1], 3), np.uint8)
    cloth[: who[0] // 2] //= 6
    pictures = []
    for frame in range(count):
        picture = np.roll(wall, camera * frame, 1)[:, :width].copy()
        x = start + (0 if stands else step * frame)
        left, right = max(0, x), min(width, x + who[1])
        if left < right:
            picture[30 : 30 + who[0], left:right] = cloth[:, left - x : right - x]
        pictures.append(picture)
    return pictures


def write(path: Path, pictures, stamps=None) -> Path:
    """Write a video, each frame at its time stamp in 1/30 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "12", "preset": "veryfast"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
