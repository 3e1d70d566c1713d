"""All surfaces, one module for each kind of input."""

from __future__ import annotations

from tests.fuzz.surface import Surface
from tests.fuzz.surfaces import (
    adapters,
    catalog_rows,
    configuration,
    images,
    job_files,
    manifests,
    mergekit,
    model_configs,
    npz,
    parquet,
    records,
    safetensors,
    signatures,
    tables,
    tokenizers,
    urls,
    yaml_text,
)

SURFACES: tuple[Surface, ...] = (
    *(job_files.SURFACE, yaml_text.SURFACE, mergekit.SURFACE, configuration.SURFACE),
    *(manifests.SURFACE, records.SURFACE, urls.SURFACE, catalog_rows.SURFACE, safetensors.SURFACE),
    *(model_configs.SURFACE, adapters.SURFACE, tokenizers.SURFACE, npz.SURFACE, tables.CSV),
    *(tables.JSON, parquet.SURFACE, images.SURFACE, signatures.SURFACE),
)
