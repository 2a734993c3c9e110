import pytest

from biflow.errors import InputError
from biflow.sampling.guidance import Guidance, parse_guidance
from biflow.sampling.samplers import GSJacobi, Jacobi, OnePass, Sequential, parse_sampler


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Guidance()),
        ("2.3,annealed", Guidance(2.3, annealed=True)),
        ("1, on=shift, temperature=1.5", Guidance(1, on="shift", temperature=1.5)),
        ("1e-1,annealed=false", Guidance(0.1)),
        ("0.5,denoise=0", Guidance(0.5, denoise=0.0)),
    ],
)
def test_guidance_shorthand(text, expected):
    assert parse_guidance(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reverse", OnePass()),
        ("sequential,denoise=0.5", Sequential(denoise=0.5)),
        ("jacobi,tolerance=1e-4", Jacobi(tolerance=1e-4)),
        ("gs-jacobi", GSJacobi()),
        ("jacobi,groups=16", Jacobi(groups=16)),
        ("jacobi,groups=[16, 8],tolerance=0", Jacobi(groups=(16, 8), tolerance=0)),
    ],
)
def test_sampler_shorthand(text, expected):
    assert parse_sampler(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jacoby", "did you mean jacobi"),
        ("jacobi,tol=1", "Unknown setting 'tol'; did you mean tolerance"),
        ("jacobi,tolerance=fast", r"tolerance: .*; got 'fast'"),
        ("jacobi,groups=[1", "cannot read"),
        ("sequential,denoise=nan", "Expected denoise"),
        ("sequential,denoise=-1", "Expected denoise"),
        ("reverse,steps=2", "it has none"),
        ("jacobi,tolerance", "not a flag"),
        ("jacobi,groups=many", "groups"),
    ],
)
def test_faults_are_one_sentence(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_sampler(text)
    assert "\n" not in str(caught.value)
