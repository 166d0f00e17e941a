"""Pictures of the server's page for the documentation: python -m tests.support.screenshots docs/img"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.scenes import make_scene
from tests.support import browser
from tests.support.server import live

QUESTION = "When does the first object appear?"
WINDOWS = {"serve": (1240, 1500, ""), "serve_dark": (1240, 1500, "dark"), "serve_phone": (390, 1500, "")}


def main(folder: Path) -> None:
    """Writes one picture of each window."""
    with tempfile.TemporaryDirectory() as work, live(Path(work)) as server:
        clip = Path(work) / "street.mp4"
        write_video(make_scene(8), clip)
        with browser.Browser(f"{server.url}/", Path(work) / "profile") as page:
            page.wait("document.documentElement.dataset.ready == 'yes'")
            page.choose("#upload", clip)
            page.wait("file.value.startsWith('file-')")
            page.js(f"question.value = {json.dumps(QUESTION)}")
            page.js("send()")
            page.wait("!report.hidden && report.contentDocument.documentElement.dataset.video == 'ready'")
            for name, (width, height, scheme) in WINDOWS.items():
                page.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=width < 500,
                )
                features = [{"name": "prefers-color-scheme", "value": scheme or "light"}]
                page.call("Emulation.setEmulatedMedia", features=features)
                page.js("scrollTo(0, 0); new Promise((done) => setTimeout(done, 800))")
                page.screenshot(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
