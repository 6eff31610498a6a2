"""Trunk features of the training images, computed once, in memory or in a temporary file.

Owns how features are kept and handed out. It trains nothing, and where features are kept from one
fit to the next is the feature store's matter.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from defectcam.network import DefectCAMNetwork, TrunkFeatures
from defectcam.temporary_maps import temporary_map

#: Views of an image by ``augmentation``: which dimensions of ``(n, channels, h, w)`` are flipped.
VIEWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal_flip": ((), (3,)),
    "flips": ((), (3,), (2,), (2, 3)),
}


class FeatureCache:
    """Trunk features of every image and view, in memory or, beyond a budget, in a temporary file.

    Parameters
    ----------
    n_images : int
        Number of images.
    views : sequence of tuple of int
        Dimensions to flip, per view; the first must be the image as it is.
    budget : int
        Bytes held in memory; a larger cache is memory-mapped from temporary files without a name,
        which disappear with the cache or the process.
    dtype : torch.dtype
        Type the features are kept in.
    batch_size : int, default=16
        Most views that go through the trunk together, unless a single image has more.
    device : torch.device or str, default="cpu"
        Where batches are handed out, the network's; the cache itself lies in ordinary memory.

    Attributes
    ----------
    deep : list of Tensor of shape (n_images, n_views, channels, height, width)
    patches : Tensor of shape (n_images, channels, height, width) or None
        Of the first view.
    novelty : Tensor of shape (n_images, height, width) or None
        Of the first view, once there is a codebook.
    """

    def __init__(
        self,
        n_images: int,
        views: Sequence[tuple[int, ...]],
        budget: int,
        dtype: torch.dtype,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_images = n_images
        self.views = views
        self.budget = budget
        self.dtype = dtype
        self.batch_size = batch_size
        self.device = device
        self.deep: list[Tensor] = []
        self.patches: Tensor | None = None
        self.novelty: Tensor | None = None
        self._maps: list[mmap.mmap] = []

    def fill(
        self,
        network: DefectCAMNetwork,
        batches: Iterable[Tensor],
        rows: Sequence[int] | None = None,
        on_filled: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """Run the trunk once per image and view.

        Parameters
        ----------
        network : DefectCAMNetwork
        batches : iterable of Tensor of shape (n, 3, height, width)
            Normalised images in order.
        rows : sequence of int, optional
            Where in the cache these images belong; by default they are all of its images.
        on_filled : callable, optional
            Called after each batch with its rows.
        """
        rows = range(self.n_images) if rows is None else rows
        start = 0
        for pixels in batches:
            filled = rows[start : start + len(pixels)]
            self._run_trunk(network, torch.as_tensor(filled), pixels)
            if on_filled is not None:
                on_filled(filled)
            start += len(pixels)

    @torch.inference_mode()
    def _run_trunk(self, network: DefectCAMNetwork, rows: Tensor, pixels: Tensor) -> None:
        """Run all views of some images, always as many at once.

        Rounding depends on how many go through the trunk together, not on which: with the last
        batch filled up, an image's features are the same bits in whatever company it comes.
        """
        n_views = len(self.views)
        largest = max(1, self.batch_size // n_views)
        n = next(n for n in range(largest, 0, -1) if self.batch_size % n == 0)
        for places, images in zip(rows.split(n), pixels.split(n), strict=True):
            full = F.pad(images, (0,) * 7 + (n - len(images),))
            flipped = torch.cat([full.flip(dims) for dims in self.views])
            features = network.trunk_features(flipped.contiguous(memory_format=torch.channels_last))
            deep = [t.unflatten(0, (n_views, n))[:, : len(images)] for t in features.deep]
            patches = None if features.patches is None else features.patches[: len(images)]
            self._keep(places, [t.transpose(0, 1) for t in deep], patches)

    def image(self, row: int) -> TrunkFeatures:
        """Features of one image, in all views; a view of the cache."""
        patches = None if self.patches is None else self.patches[row]
        return TrunkFeatures([level[row] for level in self.deep], patches)

    @torch.inference_mode()
    def put(self, row: int, features: TrunkFeatures) -> None:
        """Set the features of one image, as `image` gives them."""
        patches = None if features.patches is None else features.patches[None]
        self._keep(torch.tensor([row]), [level[None] for level in features.deep], patches)

    def batch(self, rows: Tensor, views: Tensor) -> list[Tensor]:
        """Deep features of some rows, each in one of its views, as float32 in channels_last."""
        levels = [
            level[rows, views].to(self.device).float().contiguous(memory_format=torch.channels_last)
            for level in self.deep
        ]
        self._release()
        return levels

    def patches_batch(self, rows: Tensor) -> Tensor:
        """Patch features of some rows' first view, as float32."""
        assert self.patches is not None
        patches = self.patches[rows].to(self.device).float()
        self._release()
        return patches

    def novelty_batch(self, rows: Tensor, views: Tensor) -> Tensor | None:
        """Novelty maps of some rows, flipped as their views are."""
        if self.novelty is None:
            return None
        maps = self.novelty[rows]
        for view, dims in enumerate(self.views):
            chosen = views == view
            maps[chosen] = maps[chosen].flip([dim - 1 for dim in dims])
        return maps.to(self.device)

    def close(self) -> None:
        """Release memory and temporary files, if any."""
        self.deep, self.patches, self.novelty = [], None, None
        self._maps = []

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _keep(self, rows: Tensor, deep: Sequence[Tensor], patches: Tensor | None) -> None:
        """Copy features of some images, ``(n, n_views, ...)``, and of their first views."""
        if not self.deep:
            self._allocate(deep, patches)
        for kept, fresh in zip(self.deep, deep, strict=True):
            kept[rows] = self._narrowed(fresh)
        if self.patches is not None and patches is not None:
            self.patches[rows] = self._narrowed(patches)
        self._release()

    def _narrowed(self, fresh: Tensor) -> Tensor:
        """Put features into the cache's type, of whose range nothing may fall out unnoticed."""
        low, high = (float(bound) for bound in fresh.aminmax())
        largest = max(-low, high)
        if not math.isfinite(largest):
            raise ValueError(
                "The backbone's features of an image are NaN or infinite: its weights are not "
                "usable. Pass other weights."
            )
        if largest > torch.finfo(self.dtype).max:
            raise ValueError(
                f"The backbone's features reach {largest:.3g}, beyond what the 16 bits can hold "
                'that they are kept in: pass precision="float32".'
            )
        return fresh.to("cpu", self.dtype)

    def _allocate(self, deep: Sequence[Tensor], patches: Tensor | None) -> None:
        given = [*deep] if patches is None else [*deep, patches]
        shapes = [(self.n_images, *tensor.shape[1:]) for tensor in given]
        n_bytes = sum(math.prod(shape) for shape in shapes) * self.dtype.itemsize
        if n_bytes <= self.budget:
            tensors = [torch.empty(shape, dtype=self.dtype) for shape in shapes]
        else:
            tensors = [self._on_disk(shape) for shape in shapes]
        self.deep = tensors[: len(deep)]
        self.patches = None if patches is None else tensors[-1]

    def _on_disk(self, shape: tuple[int, ...]) -> Tensor:
        n_bytes = math.prod(shape) * self.dtype.itemsize
        self._maps.append(
            temporary_map(n_bytes, what="The cache of features", remedy="lower image_size")
        )
        return torch.frombuffer(self._maps[-1], dtype=self.dtype).view(shape)

    def _release(self) -> None:
        """Let go of the memory behind what was read or written of the files.

        What they hold stays in the system's page cache while there is room, and is quickly back.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
