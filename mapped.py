"""Images that are left on the disk: rows of a memory map, read where they are used."""

import torch


class MappedImages:
    """Rows of uint8 images (M, C, H, W), as a tensor (N, C, H, W) of them would answer.

    `images` is a tensor that a file is mapped into, `rows` (N,) are positions in it, by default
    all. What is taken out, by a slice, positions or a mask, is an ordinary tensor.
    """

    dtype, device = torch.uint8, torch.device("cpu")

    def __init__(self, images, rows=None):
        self.images = images
        self.rows = torch.arange(len(images)) if rows is None else rows
        self.shape = torch.Size([len(self.rows), *images.shape[1:]])
        self.nbytes = self.shape.numel()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.images[self.rows[index]]

    def index_select(self, dim, rows):
        assert dim == 0, "images are chosen, not channels"
        return self.images.index_select(0, self.rows[rows])

    def subset(self, indices):
        """The images at `indices`, still on the disk."""
        return MappedImages(self.images, self.rows[indices])

    def to(self, device, at_once=4096):
        """A tensor on a device that is not the CPU, copied in parts; on the CPU they stay."""
        if torch.device(device).type == "cpu":
            return self
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        for start in range(0, len(self), at_once):
            whole[start : start + at_once] = self[start : start + at_once].to(device)
        return whole
