"""Every style of training, by name: each a plain loop that works out its own gradient norms, see `oracle`."""

import styles_of_backwards
import styles_of_closures
import styles_of_ownership
import styles_of_precision
import styles_of_stepping
from styles_shared import STYLES

__all__ = ["STYLES"]

MODULES = (styles_of_stepping, styles_of_precision, styles_of_closures, styles_of_ownership, styles_of_backwards)
