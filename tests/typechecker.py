"""The type checker that every function of the package is wrapped in: an int may stand where a float is asked."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
