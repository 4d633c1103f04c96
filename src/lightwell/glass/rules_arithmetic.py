"""Rules of arithmetic and of the functions of one, two and three numbers that GPT does without.

Source of the special functions' derivatives: Abramowitz and Stegun 1964, chapters 4, 6, 7 and 9.
"""

from __future__ import annotations

import math

import torch

from lightwell.glass.rule import rule

# One number.


@rule("reciprocal", formula="dz/dx = -z**2")
def reciprocal(dz, x, *, z):
    return -dz * z * z


@rule("square", formula="dz/dx = 2 * x")
def square(dz, x):
    return dz * 2 * x


@rule("abs", formula="dz/dx = sign(x)", kink="x = 0")
def abs(dz, x):
    return dz * x.sign()


@rule("exp2", formula="dz/dx = z * log(2)")
def exp2(dz, x, *, z):
    return dz * z * math.log(2)


@rule("expm1", formula="dz/dx = z + 1")
def expm1(dz, x, *, z):
    return dz * (z + 1)


@rule("log2", formula="dz/dx = 1 / (x * log(2))")
def log2(dz, x):
    return dz / (x * math.log(2))


@rule("log10", formula="dz/dx = 1 / (x * log(10))")
def log10(dz, x):
    return dz / (x * math.log(10))


@rule("log1p", formula="dz/dx = 1 / (1 + x)")
def log1p(dz, x):
    return dz / (1 + x)


@rule("tan", formula="dz/dx = 1 + z**2")
def tan(dz, x, *, z):
    return dz * (1 + z * z)


@rule("asin", formula="dz/dx = 1 / sqrt(1 - x**2)")
def asin(dz, x):
    return dz * (1 - x * x).rsqrt()


@rule("acos", formula="dz/dx = -1 / sqrt(1 - x**2)")
def acos(dz, x):
    return -dz * (1 - x * x).rsqrt()


@rule("atan", formula="dz/dx = 1 / (1 + x**2)")
def atan(dz, x):
    return dz / (1 + x * x)


@rule("sinh", formula="dz/dx = cosh(x)")
def sinh(dz, x):
    return dz * x.cosh()


@rule("cosh", formula="dz/dx = sinh(x)")
def cosh(dz, x):
    return dz * x.sinh()


@rule("asinh", formula="dz/dx = 1 / sqrt(x**2 + 1)")
def asinh(dz, x):
    return dz * (x * x + 1).rsqrt()


@rule("acosh", formula="dz/dx = 1 / sqrt(x**2 - 1)")
def acosh(dz, x):
    return dz * (x * x - 1).rsqrt()


@rule("atanh", formula="dz/dx = 1 / (1 - x**2)")
def atanh(dz, x):
    return dz / (1 - x * x)


@rule("erf", formula="dz/dx = 2 / sqrt(pi) * exp(-x**2)")
def erf(dz, x):
    return dz * 2 / math.sqrt(math.pi) * (-x * x).exp()


@rule("erfc", formula="dz/dx = -2 / sqrt(pi) * exp(-x**2)")
def erfc(dz, x):
    return -dz * 2 / math.sqrt(math.pi) * (-x * x).exp()


@rule("erfinv", formula="dz/dx = sqrt(pi) / 2 * exp(z**2)")
def erfinv(dz, x, *, z):
    return dz * math.sqrt(math.pi) / 2 * (z * z).exp()


@rule("special_erfcx", formula="dz/dx = 2 * x * z - 2 / sqrt(pi)")
def erfcx(dz, x, *, z):
    return dz * (2 * x * z - 2 / math.sqrt(math.pi))


@rule("special_ndtri", formula="dz/dx = sqrt(2 * pi) * exp(z**2 / 2)")
def ndtri(dz, x, *, z):
    return dz * math.sqrt(2 * math.pi) * (z * z / 2).exp()


@rule("special_log_ndtr", formula="dz/dx = exp(-z - x**2 / 2) / sqrt(2 * pi)")
def log_ndtr(dz, x, *, z):
    return dz / math.sqrt(2 * math.pi) * (-z - x * x / 2).exp()


@rule("special_entr", formula="dz/dx = -1 - log(x)")
def entr(dz, x):
    return dz * (-1 - x.log())


@rule("lgamma", formula="dz/dx = digamma(x)")
def lgamma(dz, x):
    return dz * x.digamma()


@rule("digamma", formula="dz/dx = trigamma(x)")
def digamma(dz, x):
    return dz * torch.polygamma(1, x)


@rule("polygamma", formula="dz/dx = polygamma(n + 1, x)")
def polygamma(dz, x, *, n):
    return dz * torch.polygamma(n + 1, x)


@rule("mvlgamma", formula="dz/dx = sum[j<p](digamma(x - j / 2))")
def mvlgamma(dz, x, *, p):
    return dz * torch.stack([(x - j / 2).digamma() for j in range(p)]).sum(0)


@rule("sinc", formula="dz/dx = [x != 0] * (cos(pi * x) - sin(pi * x) / (pi * x)) / x")
def sinc(dz, x):
    safe = torch.where(x == 0, 1.0, x)
    slope = ((math.pi * safe).cos() - (math.pi * safe).sin() / (math.pi * safe)) / safe
    return dz * torch.where(x == 0, 0.0, slope)


@rule("logit", formula="dz/dx = 1 / (x * (1 - x))")
def logit(dz, x, *, eps=None):
    inside = (x >= (eps or 0.0)) & (x <= 1 - (eps or 0.0))
    return torch.where(inside, dz / (x * (1 - x)), math.nan if eps is None else 0.0)


@rule("i0", formula="dz/dx = bessel_i1(x)")
def i0(dz, x):
    return dz * torch.special.i1(x)


@rule("special_i1", formula="dz/dx = [x != 0] * (bessel_i0(x) - z / x) + [x = 0] / 2")
def i1(dz, x, *, z):
    safe = torch.where(x == 0, 1.0, x)
    return dz * torch.where(x == 0, 0.5, torch.special.i0(x) - z / safe)


@rule("special_i0e", formula="dz/dx = exp(-abs(x)) * bessel_i1(x) - sign(x) * z", kink="x = 0")
def i0e(dz, x, *, z):
    return dz * (torch.special.i1e(x) - x.sign() * z)


@rule(
    "special_i1e",
    formula="dz/dx = [x != 0] * (exp(-abs(x)) * bessel_i0(x) - z * (sign(x) + 1 / x)) + [x = 0] / 2",
)
def i1e(dz, x, *, z):
    safe = torch.where(x == 0, 1.0, x)
    return dz * torch.where(x == 0, 0.5, torch.special.i0e(x) - z * (x.sign() + 1 / safe))


@rule("deg2rad", formula="dz/dx = pi / 180")
def deg2rad(dz, x):
    return dz * math.pi / 180


@rule("rad2deg", formula="dz/dx = 180 / pi")
def rad2deg(dz, x):
    return dz * 180 / math.pi


@rule("frac", formula="dz/dx = 1", kink="x = floor(x)")
def frac(dz, x):
    return dz


@rule("frexp", formula="dz/dx = 2**(-z1)", kink="abs(z) = 1 / 2")
def frexp(dz, x, *, zs):
    return dz / torch.exp2(zs[1])


@rule("nan_to_num", formula="dz/dx = [-inf < x < inf]")
def nan_to_num(dz, x):
    return dz * x.isfinite()


@rule(
    "clamp",
    formula="dz/dx = [lo <= x <= hi]; dz/dlo = [x < lo and lo < hi]; dz/dhi = [x > hi or lo > hi]",
    kink="x = lo; x = hi",
)
def clamp(dz, x, lo=None, hi=None):
    if lo is None:
        lo = torch.full_like(x, -math.inf)
    if hi is None:
        hi = torch.full_like(x, math.inf)
    return dz * ((lo <= x) & (x <= hi)), dz * ((x < lo) & (lo < hi)), dz * ((x > hi) | (lo > hi))


@rule("clamp_min", formula="dz/dx = [x >= lo]; dz/dlo = [x < lo]", kink="x = lo")
def clamp_min(dz, x, lo):
    return dz * (x >= lo), dz * (x < lo)


@rule("clamp_max", formula="dz/dx = [x <= hi]; dz/dhi = [x > hi]", kink="x = hi")
def clamp_max(dz, x, hi):
    return dz * (x <= hi), dz * (x > hi)


# Two numbers.


@rule("rsub", formula="dz/dx = -alpha; dz/dy = 1")
def rsub(dz, x, y, *, alpha=1):
    return -dz * alpha, dz


@rule("maximum", formula="dz/dx = [x > y] + [x = y] / 2; dz/dy = [x < y] + [x = y] / 2", kink="x = y")
def maximum(dz, x, y):
    half = torch.where(x == y, dz / 2, dz)
    return half.masked_fill(x < y, 0), half.masked_fill(x > y, 0)


@rule("minimum", formula="dz/dx = [x < y] + [x = y] / 2; dz/dy = [x > y] + [x = y] / 2", kink="x = y")
def minimum(dz, x, y):
    half = torch.where(x == y, dz / 2, dz)
    return half.masked_fill(x > y, 0), half.masked_fill(x < y, 0)


@rule("fmax", formula="dz/dx = [x >= y]; dz/dy = [x < y]", kink="x = y")
def fmax(dz, x, y):
    first = (x >= y) | y.isnan()
    return dz * first, dz * ~first


@rule("fmin", formula="dz/dx = [x <= y]; dz/dy = [x > y]", kink="x = y")
def fmin(dz, x, y):
    first = (x <= y) | y.isnan()
    return dz * first, dz * ~first


@rule("fmod", formula="dz/dx = 1; dz/dy = -trunc(x / y)", kink="x / y = trunc(x / y)")
def fmod(dz, x, y):
    return dz, -dz * (x / y).trunc()


@rule("remainder", formula="dz/dx = 1; dz/dy = -floor(x / y)", kink="x / y = floor(x / y)")
def remainder(dz, x, y):
    return dz, -dz * (x / y).floor()


@rule("atan2", formula="dz/dx = y / (x**2 + y**2); dz/dy = -x / (x**2 + y**2)")
def atan2(dz, x, y):
    square = (x * x + y * y).reciprocal()
    return torch.where(square.isinf(), 0.0, dz * y * square), torch.where(square.isinf(), 0.0, -dz * x * square)


@rule("hypot", formula="dz/dx = x / z; dz/dy = y / z")
def hypot(dz, x, y, *, z):
    return dz * x / z, dz * y / z


@rule("logaddexp", formula="dz/dx = 1 / (1 + exp(y - x)); dz/dy = 1 / (1 + exp(x - y))")
def logaddexp(dz, x, y):
    return dz / (1 + (y - x).exp()), dz / (1 + (x - y).exp())


@rule("logaddexp2", formula="dz/dx = 1 / (1 + 2**(y - x)); dz/dy = 1 / (1 + 2**(x - y))")
def logaddexp2(dz, x, y):
    return dz / (1 + (y - x).exp2()), dz / (1 + (x - y).exp2())


@rule("xlogy", formula="dz/dx = [x != 0 or y > 0] * log(y); dz/dy = x / y")
def xlogy(dz, x, y):
    return torch.xlogy(dz, y).masked_fill((x == 0) & (y <= 0), 0), dz * x / y


@rule("special_xlog1py", formula="dz/dx = [x != 0 or y > -1] * log(1 + y); dz/dy = x / (1 + y)")
def xlog1py(dz, x, y):
    return torch.special.xlog1py(dz, y).masked_fill((x == 0) & (y <= -1), 0), dz * x / (1 + y)


@rule("copysign", formula="dz/dx = [x != 0] * (z / x); dz/dy = 0", kink="x = 0; y = 0")
def copysign(dz, x, y, *, z):
    return dz * torch.where(x == 0, 0.0, z / x), dz * 0


@rule("ldexp", formula="dz/dx = 2**y; dz/dy = z * log(2)")
def ldexp(dz, x, y, *, z):
    return dz * torch.exp2(y.to(z.dtype)), dz * z * math.log(2)


# Three numbers.


@rule("lerp", formula="dz/dx = 1 - w; dz/dy = w; dz/dw = y - x")
def lerp(dz, x, y, w):
    return dz * (1 - w), dz * w, dz * (y - x)


@rule("addcmul", formula="dz/dx = 1; dz/da = value * b; dz/db = value * a")
def addcmul(dz, x, a, b, *, value=1):
    return dz, dz * value * b, dz * value * a


@rule("addcdiv", formula="dz/dx = 1; dz/da = value / b; dz/db = -value * a / b**2")
def addcdiv(dz, x, a, b, *, value=1):
    return dz, dz * value / b, -dz * value * a / (b * b)


# Division with rounding, and its floor: staircases.


@rule(
    "div.Tensor_mode",
    "div.Scalar_mode",
    formula='dz/dx = [rounding_mode = "none"] / y; dz/dy = -[rounding_mode = "none"] * x / y**2',
)
def div_mode(dz, x, y, *, rounding_mode=None):
    exact = 1.0 if rounding_mode is None else 0.0
    return dz / y * exact, -dz * (x / y) / y * exact
