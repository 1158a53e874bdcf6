"""``bitquilt report``: one page about quantized files, to read and to pass on."""

from __future__ import annotations

from pathlib import Path

import click

from bitquilt.cli.options import JSON, config_options, print_json
from bitquilt.report.config import ReportConfig
from bitquilt.runtime.extras import require_resvg
from bitquilt.runtime.workdir import require_quantized


@click.command()
@click.argument("work_dir", metavar="WORKDIR")
@config_options(ReportConfig)
@JSON
def report(work_dir: str, config: ReportConfig, as_json: bool) -> None:
    """Write one HTML page about the files made with WORKDIR.

    \b
    bitquilt quantize demo --bits 4.5
    bitquilt eval demo-4.5bit.gguf --against demo
    bitquilt report demo.work

    WORKDIR is the work directory that `bitquilt quantize` left. The page shows size against
    divergence, the bits of every matrix, the evaluations that `bitquilt eval` left beside the
    files, and the commands that make the files again. It needs no network and runs no script.
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    require_quantized(Path(work_dir))
    if config.png:
        require_resvg()
    from bitquilt.report import page

    path = Path(config.output) if config.output else Path(work_dir).resolve().parent
    path = path / "report.html" if path.is_dir() else path
    contents = page.make_report(work_dir)
    page.write_page(contents, path)
    plots = page.write_plots(contents, path) if config.png else []
    if as_json:
        print_json({"page": str(path), "plots": [str(plot) for plot in plots]})
    else:
        click.echo("\n".join(map(str, [path, *plots])))
