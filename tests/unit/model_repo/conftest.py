from __future__ import annotations

from tests.unit.model_repo.fake_triton import install

install()
