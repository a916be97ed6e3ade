"""How a sector scanner makes its picture: scatterers, point spread, noise, log compression, scan conversion.

Nothing here knows about the heart: anatomy comes in as an echogenicity map in beam space and as the material
coordinates that carry the scatterers, so that the speckle moves with the tissue.

Sources: fully developed speckle as the modulus of a complex Gaussian field, hence Rayleigh distributed
(Wagner et al. 1983, "Statistics of speckle in ultrasound B-scans"); the point spread as a separable Gaussian in
beam space, whose width in millimetres therefore grows with depth; the picture as the logarithm of the envelope
(Szabo, "Diagnostic Ultrasound Imaging", ch. 10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Complexes = npt.NDArray[np.complex64]

FACE_MM = 8.0  # the transducer face: no echoes nearer than this
TEXTURE_CELLS = 256  # a power of two: the scatterer texture repeats by a bit mask
TEXTURE_MM = 0.9  # below the axial resolution of every style, so that each cell holds many scatterers


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one (invented) vendor's machine draws.

    Attributes:
        half_angle_deg: half of the sector's opening.
        depth_ratio: imaging depth as a multiple of the depth the heart needs.
        dynamic_range_db: span of echoes shown between black and white.
        gain_db: brightness added before compression.
        beam_deg: standard deviation of the point spread across beams.
        pulse_mm: standard deviation of the point spread along a beam.
        noise_db: electronic noise at the far end relative to myocardium.
        clutter_db: near-field reverberation relative to myocardium.
        attenuation_db: loss over the full depth that the machine does not compensate.
        gamma: grey map exponent after log compression.
    """

    half_angle_deg: float
    depth_ratio: float
    dynamic_range_db: float
    gain_db: float
    beam_deg: float
    pulse_mm: float
    noise_db: float
    clutter_db: float
    attenuation_db: float
    gamma: float


STYLES = {
    "aster": Style(  # sharp, contrasty, dark pool
        half_angle_deg=43.0, depth_ratio=1.02, dynamic_range_db=50.0, gain_db=0.0, beam_deg=0.75, pulse_mm=0.6,
        noise_db=-24.0, clutter_db=-3.0, attenuation_db=7.0, gamma=1.15,
    ),
    "borea": Style(  # smooth and bright, long grey scale
        half_angle_deg=46.0, depth_ratio=1.08, dynamic_range_db=62.0, gain_db=3.0, beam_deg=1.2, pulse_mm=0.9,
        noise_db=-29.0, clutter_db=-5.0, attenuation_db=9.0, gamma=1.3,
    ),
    "cygna": Style(  # old machine: coarse speckle, noisy at depth
        half_angle_deg=39.0, depth_ratio=1.0, dynamic_range_db=54.0, gain_db=1.0, beam_deg=1.5, pulse_mm=1.1,
        noise_db=-19.0, clutter_db=0.0, attenuation_db=12.0, gamma=1.0,
    ),
    "delos": Style(  # hand-held: deep, narrow grey scale, dim
        half_angle_deg=41.0, depth_ratio=1.16, dynamic_range_db=50.0, gain_db=-2.0, beam_deg=1.1, pulse_mm=0.8,
        noise_db=-19.0, clutter_db=-1.0, attenuation_db=10.0, gamma=0.95,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sector:
    """The fan: the probe at x = 0, z = 0; x to the right and z down the picture, in mm."""

    size: tuple[int, int]
    depth_mm: float
    half_angle_deg: float

    @property
    def spacing_mm(self) -> float:
        """Side of a (square) pixel: the depth and a small margin fill the shorter side."""
        return 1.04 * self.depth_mm / min(self.size)

    def pixels(self) -> tuple[Floats, Floats]:
        """Centres of the pixels, x_mm and z_mm, each [H, W]."""
        rows, columns = np.indices(self.size, dtype=np.float32)
        x = (columns + 0.5 - self.size[1] / 2) * self.spacing_mm
        z = (rows + 0.5) * self.spacing_mm - 0.02 * self.depth_mm
        return x.astype(np.float32), z.astype(np.float32)

    def inside(self) -> npt.NDArray[np.bool_]:
        """The pixels the fan covers [H, W]."""
        x, z = self.pixels()
        radius, angle = np.hypot(x, z), np.arctan2(x, z)
        within = (radius >= FACE_MM) & (radius <= self.depth_mm) & (np.abs(angle) <= np.deg2rad(self.half_angle_deg))
        return np.asarray(within, dtype=np.bool_)

    def samples(self) -> tuple[Floats, Floats]:
        """The beam grid: depths_mm [R] and angles in radians [B], a little finer than the pixels."""
        depths = np.linspace(FACE_MM, self.depth_mm, int(1.25 * min(self.size)), dtype=np.float32)
        half = np.deg2rad(self.half_angle_deg)
        return depths, np.linspace(-half, half, int(1.15 * min(self.size)), dtype=np.float32)

    def scan_convert(self, polar: Floats) -> Floats:
        """Beam space [T, R, B] to picture [T, H, W], bilinear; 0 outside the fan."""
        depths, angles = self.samples()
        inside = self.inside()
        x, z = (c[inside] for c in self.pixels())
        row = (np.hypot(x, z) - depths[0]) / (depths[1] - depths[0])
        column = (np.arctan2(x, z) - angles[0]) / (angles[1] - angles[0])
        i = np.clip(row.astype(np.intp), 0, len(depths) - 2)
        j = np.clip(column.astype(np.intp), 0, len(angles) - 2)
        v, u = row - i.astype(np.float32), column - j.astype(np.float32)
        flat, corner = polar.reshape(len(polar), -1), i * len(angles) + j
        picture = np.zeros((len(polar), *self.size), np.float32)
        top = flat[:, corner] * (1 - u) + flat[:, corner + 1] * u
        bottom = flat[:, corner + len(angles)] * (1 - u) + flat[:, corner + len(angles) + 1] * u
        picture[:, inside] = top * (1 - v) + bottom * v
        return picture


def complex_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Complexes:
    """Circular complex Gaussian of unit power: the sum of many scatterers of random phase."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def tissue_texture(rng: np.random.Generator, patch_mm: float = 7.0, patch_db: float = 3.5) -> Complexes:
    """A repeating texture of scatterers [256, 256], one cell each 0.9 mm, whose density varies in patches."""
    shape = (TEXTURE_CELLS, TEXTURE_CELLS)
    wave = np.fft.fftfreq(TEXTURE_CELLS, TEXTURE_MM)
    low_pass = np.exp(-2.0 * (np.pi * patch_mm / 2) ** 2 * (wave[:, None] ** 2 + wave**2))
    patches = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * low_pass).real
    texture = complex_noise(rng, shape) * decibels(patch_db * patches / patches.std())
    return np.asarray(texture / np.sqrt((np.abs(texture) ** 2).mean()), dtype=np.complex64)


def scatterers(texture: Complexes, x_mm: Floats, y_mm: Floats) -> Complexes:
    """Look the scatterer texture [256, 256] up at material coordinates (any shape), bilinear, repeating."""
    column, row = x_mm / np.float32(TEXTURE_MM), y_mm / np.float32(TEXTURE_MM)
    j, i = np.floor(column), np.floor(row)
    u, v = column - j, row - i
    wrap = TEXTURE_CELLS - 1
    j0, i0 = j.astype(np.int32) & wrap, (i.astype(np.int32) & wrap) * TEXTURE_CELLS
    j1, i1 = (j0 + 1) & wrap, (i0 + TEXTURE_CELLS) & (wrap * TEXTURE_CELLS)
    flat = texture.reshape(-1)
    top = flat.take(i0 + j0) * (1 - u) + flat.take(i0 + j1) * u
    bottom = flat.take(i1 + j0) * (1 - u) + flat.take(i1 + j1) * u
    # Interpolation averages independent cells: dividing by the norm of the weights restores unit power.
    weight = np.sqrt(((1 - u) ** 2 + u**2) * ((1 - v) ** 2 + v**2))
    return np.asarray((top * (1 - v) + bottom * v) / weight, dtype=np.complex64)


def blur(field: Complexes, sigma: float, axis: int) -> Complexes:
    """Convolve with a Gaussian of ``sigma`` samples that keeps the power of white noise; edges repeat."""
    reach = int(np.ceil(2.2 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    taps = (taps / np.sqrt((taps**2).sum())).astype(np.float32)
    width = [(0, 0)] * field.ndim
    width[axis] = (reach, reach)
    padded = np.moveaxis(np.pad(field, width, mode="edge"), axis, 0)
    length = field.shape[axis]
    total = padded[reach : reach + length] * taps[reach]
    for k in range(1, reach + 1):
        total += (padded[reach - k : reach - k + length] + padded[reach + k : reach + k + length]) * taps[reach + k]
    return np.moveaxis(total, 0, axis)


def decibels(level_db: float | Floats) -> Floats:
    """Amplitude ratio of a level in dB."""
    return np.asarray(10.0 ** (np.asarray(level_db) / 20.0), dtype=np.float32)


def point_spread(field: Complexes, sector: Sector, style: Style) -> Complexes:
    """Blur echoes [T, R, B] as the beam does.

    The lateral blur is constant in angle, so in mm it grows with depth; beyond the focus it is wider still.
    """
    depths, angles = sector.samples()
    beams = np.deg2rad(style.beam_deg) / float(angles[1] - angles[0])
    near = blur(blur(field, style.pulse_mm / float(depths[1] - depths[0]), 1), beams, 2)
    far = blur(near, 0.9 * beams, 2)
    blend = np.clip((depths - 0.45 * depths[-1]) / (0.55 * depths[-1]), 0, 1)[:, None].astype(np.float32)
    near += (far - near) * blend
    return near


def loudness(field: Complexes, sector: Sector, style: Style, bands: int = 8) -> Floats:
    """Root mean square [R, 1] of a field [1, R, B] after the point spread, smoothed over depth.

    The blur favours what is correlated between samples, more so on a fine grid: dividing by the loudness of plain
    tissue makes levels in dB mean the same at every picture size.
    """
    depths, _ = sector.samples()
    power = (np.abs(point_spread(field, sector, style)[0]) ** 2).mean(axis=1)
    middle = [float(part.mean()) for part in np.array_split(depths, bands)]
    levels = [float(part.mean()) for part in np.array_split(power, bands)]
    return np.sqrt(np.interp(depths, middle, levels)).astype(np.float32)[:, None]


def compress(amplitude: Floats, style: Style, white_db: float = 18.5) -> Floats:
    """Log compression to grey in [0, 1]: white is ``white_db`` above the mean echo of myocardium."""
    level_db = 20.0 * np.log10(np.maximum(amplitude, np.float32(1e-6))) + np.float32(style.gain_db - white_db)
    grey = np.clip(1.0 + level_db / np.float32(style.dynamic_range_db), 0.0, 1.0)
    return np.asarray(grey ** np.float32(style.gamma), dtype=np.float32)
