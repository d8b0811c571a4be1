"""Numbers that files of models were made with."""

E2_PER_INTERNAL = 90.0474  # q^2 in internal units for one e^2: 1/(2 eps0) in eV A/e^2, as trained
FIXED_CHARGE_UNIT = 9.48933  # internal units per e in fixed-charge modules, as in the files
LENGTH_SHIFT = 1e-9  # A: directions are d/(|d| + 1e-9), as trained
