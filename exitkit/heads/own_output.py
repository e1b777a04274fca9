r"""Output heads of kind `output`: an exit's own output layer, the :math:`g_i` of AdaDiff eq. 8."""

from __future__ import annotations

from torch import Tensor, nn

from exitkit.config import OutputConfig
from exitkit.errors import ShapeError
from exitkit.heads.carried.state import CarriedState
from exitkit.heads.channels import ChannelLinear, check_embedding, check_hidden
from exitkit.heads.grid import frames_first, output_size, place, swapped
from exitkit.heads.kinds import OutputKind, Site, register_kind
from exitkit.heads.output_bodies import Body, Features, Patches, Pooled, Unplaced
from exitkit.surgery.spec import Boundary, HiddenSpec, Plan


class OwnOutputHead(nn.Module):
    r"""An exit's own output layer :math:`g_i`.

    Tokens that tile the output: LayerNorm, linear, un-patch, 3x3 convolution. Features: GroupNorm,
    SiLU, 3x3 convolution, resize to the output's grid, and a second convolution that sees the noisy
    input beside them, since a coarse grid cannot carry noise per pixel. Vectors and classes: mean
    over positions, LayerNorm, linear. Where positions have no place in the output: a mean and a
    multiple of the noisy input. Weights start small (0.02), so predictions do too; the convolution
    behind patches starts as the identity.

    References:
        | AdaDiff: Accelerating Diffusion Models through Step-Wise Adaptive Computation
          (Tang et al., 2023), eq. 8
        | https://arxiv.org/abs/2309.17074

    Arguments:
        hidden: Layout of the hidden state.
        output: Shape of the backbone's prediction without rows, or (classes,).
        noisy: Shape of the noisy input without rows, or None. Features alone look at it.
        embedding_dim: Width E of the timestep embedding; 0 leaves the timestep out.
    """

    def __init__(
        self,
        hidden: HiddenSpec,
        output: tuple[int, ...],
        noisy: tuple[int, ...] | None,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.hidden, self.embedding_dim = hidden, embedding_dim
        self.frames_first = frames_first(hidden, output)
        if self.frames_first:
            output = swapped(output)
            noisy = swapped(noisy) if noisy is not None and len(noisy) == 4 else None
        self.output, self.noisy_shape = output, noisy
        placement = place(hidden, output)
        self.body: Body
        if placement is None and len(output) > 1 and len(hidden.shape) > 1:
            self.body = Unplaced(hidden, output, noisy, embedding_dim)
        elif placement is None:
            self.body = Pooled(hidden, output, embedding_dim)
        elif placement.kind == "features":
            self.body = Features(hidden, output, noisy, embedding_dim)
        else:
            self.body = Patches(hidden, placement, embedding_dim)
        self.apply(_start_small)
        self.body.start()

    @classmethod
    def at(cls, site: Site) -> OwnOutputHead:
        """A head for an exit."""
        return cls(site.hidden, site.output, site.noisy, site.embedding_dim)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor | None = None,
        noisy: Tensor | None = None,
        state: CarriedState | None = None,
    ) -> Tensor:
        """Makes the exit's own prediction.

        Arguments:
            hidden: Hidden state, with shape (B, *hidden.shape).
            embedding: Timestep embedding, with shape (B, E); None if the head has no timestep.
            noisy: Noisy input, with shape (B, *noisy); used by features that were built with it.
            state: Not used.

        Returns:
            The prediction, with shape (B, *output), in the dtype of `hidden`.

        Raises:
            ShapeError: If an argument does not have the shape the head was built for, sizes apart.
        """
        check_hidden("OwnOutputHead", hidden, self.hidden)
        embedding = check_embedding("OwnOutputHead", embedding, self.embedding_dim, len(hidden))
        if self.frames_first and noisy is not None:
            noisy = noisy.transpose(1, 2)
        self._check_noisy(noisy)
        size = output_size(self.output, self.noisy_shape, noisy)
        out: Tensor = self.body(hidden, embedding, noisy, size)
        if noisy is not None and self.noisy_shape == self.output and out.shape != noisy.shape:
            raise self._unlike(noisy, f"the head makes predictions of {tuple(out.shape[1:])}")
        if self.frames_first:
            out = out.transpose(1, 2)
        return out.to(hidden.dtype)

    def _check_noisy(self, noisy: Tensor | None) -> None:
        """Refuses rows of another form than the head was built for; another size alone is none."""
        built = self.noisy_shape
        if noisy is None or built is None:
            return
        same = noisy.dim() == len(built) + 1
        if same and (isinstance(self.body, Patches) or noisy.shape[1] == built[0]):
            return
        why = "its channels are others"
        if not same:
            why = "rows of several sizes, a list of tensors, have no common form"
        raise self._unlike(noisy, why)

    def _unlike(self, noisy: Tensor, why: str) -> ShapeError:
        return ShapeError(
            f"OwnOutputHead: a row of the noisy input has shape {tuple(noisy.shape[1:])}, in the example "
            f"{self.noisy_shape}: {why}, and exits with an output layer of their own predict in that form "
            "alone. Call with rows like the example, one call a size, or take exits that leave through "
            "the backbone's own tail: the preset 'relative'."
        )


@register_kind
class OwnOutput(OutputKind):
    """Lands nowhere: the head makes the prediction."""

    name = "output"

    def landing(self, plan: Plan, at: Boundary, config: OutputConfig) -> int | None:
        return None

    def build(self, site: Site, config: OutputConfig) -> nn.Module:
        return OwnOutputHead.at(site)


def _start_small(module: nn.Module) -> None:
    # 0.02 as in the U-ViT's own output layers: predictions start near zero, hence finite.
    if isinstance(module, ChannelLinear | nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
