"""Name of a public set of cells -> its address, file, source page, licence and citation."""

import dataclasses

# figshare.com/ndownloader answers programs with an empty page; this host sends the same files.
_FIGSHARE = "https://ndownloader.figshare.com/files/"
_CELLXGENE = "https://datasets.cellxgene.cziscience.com/"
_COLLECTION = "https://cellxgene.cziscience.com/collections/"
_INTESTINE = (
    _COLLECTION + "f30e0bf7-7b03-44b0-b312-cda799ef0240",
    "CC BY 4.0",
    "see the source page; Cell Reports (2024), "
    "https://www.cell.com/cell-reports/fulltext/S2211-1247(24)00575-8",
)
_PERTURB_SEQ = (
    "https://doi.org/10.25452/figshare.plus.20029387",
    "CC BY 4.0",
    "Replogle et al., Mapping information-rich genotype-phenotype landscapes with genome-scale "
    "Perturb-seq, Cell (2022), https://doi.org/10.1016/j.cell.2022.05.013",
)


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """One file that anyone may download.

    Attributes:
      name: what the set is called on the command line.
      url: address of the file.
      file: name it gets here.
      page: where the source describes the set.
      licence: its terms, or where they are found.
      citation: what a text that uses it should cite.
    """

    name: str
    url: str
    file: str
    page: str
    licence: str
    citation: str

    def terms(self) -> str:
        """Licence, citation and source page, one a line."""
        return f"licence: {self.licence}\ncite: {self.citation}\nsource page: {self.page}"


SETS = {
    public.name: public
    for public in (
        PublicSet(
            "pancreas",
            _FIGSHARE + "24539828",
            "human_pancreas_norm_complexBatch.h5ad",
            "https://doi.org/10.6084/m9.figshare.12420968",
            "CC BY 4.0",
            "Luecken et al., Benchmarking atlas-level data integration in single-cell genomics, "
            "Nature Methods 19 (2022), https://doi.org/10.1038/s41592-021-01336-8",
        ),
        PublicSet(
            "zero_shot",
            _FIGSHARE + "43480497",
            "zero_shot.zip",
            "https://doi.org/10.6084/m9.figshare.24747228",
            "see the source page",
            "Kedzierska et al., Zero-shot evaluation reveals limitations of single-cell foundation "
            "models, Genome Biology 26 (2025), https://doi.org/10.1186/s13059-025-03574-x; and the "
            "source of each set in it",
        ),
        PublicSet(
            "hematopoiesis",
            _CELLXGENE + "d72106bd-d03b-45e6-a0fa-ca2a831ef092.h5ad",
            "hematopoiesis.h5ad",
            _COLLECTION + "0aab20b3-c30c-4606-bd2e-d20dae739c45",
            "CC BY 4.0",
            "Heimlich et al., Multiomic profiling of human clonal hematopoiesis reveals genotype "
            "and cell-specific inflammatory pathway activation, Blood Advances 8 (2024), "
            "https://doi.org/10.1182/bloodadvances.2023011445",
        ),
        PublicSet(
            "placenta",
            _CELLXGENE + "50bbe1a2-5f27-47f5-a809-046459a4ae5e.h5ad",
            "placenta.h5ad",
            _COLLECTION + "5f80428b-222d-450b-a7de-a408186ceb86",
            "CC BY 4.0",
            "Hoo et al., Acute response to pathogens in the early human placenta at single-cell "
            "resolution, Cell Systems (2024), "
            "https://www.cell.com/cell-systems/fulltext/S2405-4712(24)00117-0",
        ),
        PublicSet(
            "intestine_ifn",
            _CELLXGENE + "4fd4f3a1-8c41-4f73-808b-196766ed942d.h5ad",
            "intestine_ifn.h5ad",
            *_INTESTINE,
        ),
        PublicSet(
            "intestine_control",
            _CELLXGENE + "610bb418-705a-4493-a1fb-e14b8379af4f.h5ad",
            "intestine_control.h5ad",
            *_INTESTINE,
        ),
        PublicSet(
            "periodontitis",
            _CELLXGENE + "91796603-b12b-4d62-88cf-006957399338.h5ad",
            "periodontitis.h5ad",
            _COLLECTION + "71f4bccf-53d4-4c12-9e80-e73bfb89e398",
            "CC BY 4.0",
            "Easter et al., Single-cell and spatially resolved interactomics of tooth-associated "
            "keratinocytes in periodontitis, Nature Communications (2024), "
            "https://doi.org/10.1038/s41467-024-49037-y",
        ),
        PublicSet(
            "k562_essential",
            _FIGSHARE + "35773219",
            "K562_essential_raw_singlecell_01.h5ad",
            *_PERTURB_SEQ,
        ),
        PublicSet(
            "rpe1_essential",
            _FIGSHARE + "35775606",
            "rpe1_raw_singlecell_01.h5ad",
            *_PERTURB_SEQ,
        ),
        PublicSet(
            "k562_genome_wide",
            _FIGSHARE + "35775507",
            "K562_gwps_raw_singlecell_01.h5ad",
            *_PERTURB_SEQ,
        ),
    )
}


def table() -> str:
    """Every set, with its file, address, licence, citation and source page."""
    rows = []
    for public in SETS.values():
        terms = public.terms().replace("\n", "\n  ")
        rows.append(f"{public.name}\n  {public.file}\n  {public.url}\n  {terms}")
    return "\n".join(rows)
