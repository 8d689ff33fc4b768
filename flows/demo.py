"""A page on which a person compares models: `make demo`, or `python -m flows.demo --outputs runs/smoke`.

It draws one prompt with the models that are ticked, from the same noise, and shows the pictures side by side with the
judge's scores and choice. The page is served on 127.0.0.1 and asks for the password in `.sana15/password`, as all
servers of the project do. That is why this module is in `flows`: tasks may not import the password. What is drawn is
the business of `tasks.side_by_side`. `DEMO_PORT` chooses another port than 7860. Nothing is loaded from a network.
"""

import argparse
import asyncio
import base64
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flows.entry.password import USER, credentials, password_file
from flows.entry.password_middleware import PasswordMiddleware
from flows.entry.project_servers import HOST
from flows.servers import Server, refuse_busy_port
from tasks.side_by_side import (
    DrawnByModel,
    OfferedModel,
    Wish,
    draw_side_by_side,
    find_outputs,
    first_prompt,
    has_judge,
    offered_models,
    png_bytes,
    zip_of,
)
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, complain
from tasks.tracking.model_registry import params_of

try:
    from nicegui import app, binding, run, ui
except ModuleNotFoundError:
    sys.exit(complain(UserError("nicegui is missing: run make demo, which installs it"), BAD_INPUT))

PORT_VARIABLE, DEFAULT_PORT = "DEMO_PORT", 7860
PICTURES = 4
SMALL_PICTURE = 128
"""Pictures whose height has fewer pixels are enlarged without smoothing, so that a person sees what was drawn."""
CSS = Path(__file__).with_suffix(".css")
DRAWING = asyncio.Lock()
"""One person's wish is drawn at a time: each takes the whole machine."""


@dataclass
class State:
    """What one visitor's page shows beside its fields: the status line, the progress, and what was drawn last."""

    line: str = "Write a prompt, tick models and draw."
    part: float = 0.0
    busy: bool = False
    left: bool = False
    """Whether the visitor has gone. Then no further model draws."""
    wish: Wish | None = None
    drawn: list[DrawnByModel] = field(default_factory=list)

    def report(self, line: str, part: float) -> None:
        """Take note of what is done now and which part of it is done. The thread that draws calls this."""
        self.line, self.part = line, part


def build_page(outputs: Path) -> None:
    """The page, for one visitor. It offers the models that are finished when the visitor opens it."""
    ui.add_css(CSS.read_text(encoding="utf-8"))
    ui.colors(primary="#2456a6")
    try:
        models = offered_models(outputs)
        params = params_of(models[0].folder)
        first = first_prompt(outputs, params)
    except UserError as error:
        ui.label(str(error)).classes("status error")
        return
    state = State()
    ui.context.client.on_delete(lambda: setattr(state, "left", True))
    with ui.element("div").classes("top"):
        ui.label("sana15").classes("title")
        ui.label("One prompt, the same noise, every model").classes("motto")
        ui.label(str(outputs)).classes("where")
    with ui.element("div").classes("columns"):
        with ui.element("form").classes("fields").on("submit.prevent", lambda: draw()):
            prompt = ui.textarea("Prompt", value=first).props("outlined autogrow").classes("wide")
            prompt.on("keydown.enter.prevent", lambda: draw())
            with ui.element("fieldset").classes("wide"):
                ticks = {model: ui.checkbox(model.name, value=is_ticked(model)).props("dense") for model in models}
            pictures = ui.number("Pictures", value=PICTURES, precision=0).props("outlined dense")
            seed = ui.number("Seed", value=params.compute.seed, precision=0).props("outlined dense")
            steps = ui.number("Steps", value=params.sampling.steps, precision=0).props("outlined dense")
            guidance = ui.number("Guidance", value=params.sampling.guidance, step=0.5).props("outlined dense")
            button = ui.button("Draw").props("type=submit unelevated no-caps").classes("wide")
            button.bind_enabled_from(state, "busy", backward=lambda busy: not busy)
            if not has_judge(outputs):
                ui.label("This experiment has no judge: pictures have no scores.").classes("wide note")
        with ui.element("section"):
            with ui.element("div").classes("bar"):
                status = ui.label().classes("status").bind_text_from(state, "line")
                download = ui.button("Download ZIP", on_click=lambda: send_zip(state)).props("flat no-caps dense")
                download.bind_visibility_from(state, "wish", backward=lambda wish: wish is not None)
            meter = ui.linear_progress(show_value=False, size="4px").bind_value_from(state, "part")
            meter.bind_visibility_from(state, "busy")
            shown = ui.element("div").classes("models")

    def read_wish() -> Wish:
        """The fields of the page. Raises UserError if one is empty or does not fit."""
        numbers = {"pictures": pictures, "seed": seed, "steps": steps, "guidance": guidance}
        for name, number in numbers.items():
            if number.value is None:
                raise UserError(f"{name} is empty: write a number")
        ticked = tuple(model for model, tick in ticks.items() if tick.value)
        whole = {name: int(number.value) for name, number in numbers.items() if number is not guidance}
        return Wish(" ".join((prompt.value or "").split()), ticked, guidance=float(guidance.value), **whole)

    async def draw() -> None:
        """Draw what the fields ask for, and show each model's pictures as soon as they are there."""
        if state.busy:
            return
        state.busy = True
        status.classes(remove="error")
        state.report("waiting for another drawing" if DRAWING.locked() else "", 0.0)
        try:
            wish = read_wish()
            state.wish, state.drawn = None, []
            shown.clear()
            async with DRAWING:
                drawing = draw_side_by_side(wish, state.report)
                while (one := await run.io_bound(next, drawing, None)) is not None:
                    if state.left:
                        return
                    state.drawn.append(one)
                    with shown:
                        show_model(one)
            state.wish, state.line = wish, f"“{wish.prompt}”, seed {wish.seed}"
        except UserError as error:
            status.classes(add="error")
            state.line = str(error)
        except Exception as error:
            status.classes(add="error")
            state.line = f"drawing failed ({type(error).__name__}): the terminal of make demo says more"
            raise
        finally:
            state.busy = False


def is_ticked(model: OfferedModel) -> bool:
    """Whether a model is ticked at first: all are but the pruned ones, which are not yet fine-tuned."""
    return not model.name.startswith("pruned")


def show_model(one: DrawnByModel) -> None:
    """One model's card: its facts, the chosen picture enlarged, and all pictures in the order of their noise."""
    judged = one.scores_N is not None
    with ui.element("article").props(f"data-model={one.model.name}"):
        ui.label(one.model.name).classes("name")
        ui.label(f"{one.model.size} · {one.seconds:.2f} s").classes("facts")
        caption = (
            f"the judge's choice: log\N{NO-BREAK SPACE}P(yes) {one.score_text(one.chosen)}"
            if judged
            else "the first picture"
        )
        show_picture(one, one.chosen, caption, "best")
        with ui.element("div").classes("all"):
            for index in range(len(one.pictures_NHW3)):
                chosen = judged and index == one.chosen
                show_picture(one, index, f"{'★ ' * chosen}{one.score_text(index)}", "chosen" if chosen else "")


def show_picture(one: DrawnByModel, index: int, caption: str, classes: str) -> None:
    """A picture with the text below it."""
    picture_HW3 = one.pictures_NHW3[index]
    with ui.element("figure").classes(classes):
        image = ui.element("img").classes("pixels" if len(picture_HW3) < SMALL_PICTURE else "")
        image.props["src"] = f"data:image/png;base64,{base64.b64encode(png_bytes(picture_HW3)).decode()}"
        image.props["alt"] = f"picture {index + 1} of {one.model.name}"
        with ui.element("figcaption"):
            ui.label(caption)


def send_zip(state: State) -> None:
    """Send all pictures to the visitor's browser, as a file to keep."""
    assert state.wish is not None
    ui.download.content(zip_of(state.wish, state.drawn), f"sana15-seed-{state.wish.seed}.zip", "application/zip")


def serve(outputs: Path) -> None:
    """Serve the page until Ctrl-C. Raises UserError if the port is busy, or if there is no model to show."""
    offered_models(outputs)
    port = os.environ.get(PORT_VARIABLE, str(DEFAULT_PORT))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{PORT_VARIABLE} is {port!r}: it must be a port, such as {DEFAULT_PORT}")
    refuse_busy_port(Server("demo", (), int(port), PORT_VARIABLE))
    app.add_middleware(PasswordMiddleware, credentials=credentials())
    login = f"log in as {USER} with what is behind the colon: cat {shlex.quote(str(password_file()))}"
    app.on_startup(lambda: print(f"http://{HOST}:{port}\n{login}", flush=True))
    binding.MAX_PROPAGATION_TIME = 1.0  # NiceGUI warns of longer ones, and its 0.01 s are soon over while a model draws
    with suppress(KeyboardInterrupt):
        ui.run(
            lambda: build_page(outputs),
            host=HOST,
            port=int(port),
            title="sana15",
            favicon="🎨",
            reload=False,
            show=False,
            show_welcome_message=False,
            reconnect_timeout=30,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page and return the exit code: 0 after Ctrl-C, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--outputs", type=Path, default=paths.OUTPUTS, help="the outputs or the folder of an experiment, as runs/smoke"
    )
    try:
        serve(find_outputs(parser.parse_args(argv).outputs))
    except UserError as error:
        return complain(error, BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
