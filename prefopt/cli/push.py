"""`prefopt push`: what a run made, on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    path: Annotated[
        Path,
        typer.Argument(help="A finished run, or a merged model's folder.", metavar="RUN_OR_FOLDER", show_default=False),
    ],
    repo: Annotated[
        str, typer.Argument(help="Repository on the Hub: owner/name.", metavar="REPO_ID", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, instead of the main one.")] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence for the card of a run, as the Hub calls it: apache-2.0, mit, ...")
    ] = None,
) -> None:
    """Upload a run's adapter (or its model), or a merged model, to the Hugging Face Hub, with its model card.

    A repository that is new is private unless you say --public. Log in first with `hf auth login`.

    **Examples**

    - `prefopt push runs/mine me/my-adapter`
    - `prefopt push merged/mine me/my-model --public`
    """
    from prefopt.report.card import write_card
    from prefopt.workflow.push import push_folder, weights_of

    folder = weights_of(path)
    if folder != path:
        write_card(path, folder, license=license)
    typer.echo(push_folder(folder, repo, public=public, revision=revision))
