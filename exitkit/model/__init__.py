"""The object a user holds: a wrapped network, or the wrapped denoisers of one pipeline."""

from exitkit.model.several import ExitModels as ExitModels
from exitkit.model.several import Wrapped as Wrapped
from exitkit.model.several import expect_wrapped as expect_wrapped
from exitkit.model.wrapped import ExitModel as ExitModel
