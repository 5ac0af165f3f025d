"""The dense CRF that refines proposals and label maps along the edges of the image."""

from stages.crf.backends import BACKENDS, Backend, choose_backend
from stages.crf.definition import CrfError
from stages.crf.settings import CrfSettings

__all__ = ["BACKENDS", "Backend", "CrfError", "CrfSettings", "choose_backend"]
