"""The web page in Chromium: it loads without an error, learns, saves, goes on, answers its controls, and names what is missing."""

import functools
import http.server
import io
import json
import shutil
import threading

import javascript
import numpy as np
import pytest

from a2c_compiled.demo.web_page import write_learning_page
from a2c_compiled.export.on_device.learn_policy import greedy_return
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.export.web_page import downloads

REASON = javascript.missing("onnxruntime-web", javascript.PLAYWRIGHT, chromium=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("web_chromium"),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

PLACE = "some/place"
"""The page is not at the root of its host."""

OPEN = """
globalThis.browser ??= await runtime.chromium.launch({ executablePath: values[0].chromium, args: ["--no-sandbox"] });
const { url, width, height, scheme } = values[0];
await globalThis.context?.close();
globalThis.context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
globalThis.page = await context.newPage();
globalThis.problems = [];
page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
page.on("pageerror", (error) => problems.push(`uncaught: ${error.message}`));
page.on("requestfailed", (request) => problems.push(`failed: ${request.url()}`));
page.on("response", (response) => response.ok() || problems.push(`status ${response.status()}: ${response.url()}`));
page.on("request", (request) => {
  if (!request.url().startsWith(url) && !/^(blob|data):/.test(request.url())) problems.push(`elsewhere: ${request.url()}`);
});
await page.goto(url);
"""
STATUS = "const has_status = (text) => page.waitForFunction("
STATUS += "(text) => document.getElementById('status').textContent.includes(text), text, { timeout: 60000 });"


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *arguments):
        pass


class Browser:
    """A page in Chromium."""

    def __init__(self, address):
        module = javascript.ROOT / "node_modules" / javascript.PLAYWRIGHT / "index.mjs"
        self._process, self._address = javascript.JavaScript(module), address

    def open(self, place=PLACE, width=1280, height=800, scheme="light", ready=True):
        """Opens the page in a new context; by default, waits until it is ready."""
        url = f"{self._address}/{place}/"
        self._process.run(
            OPEN, {"chromium": javascript.CHROMIUM, "url": url, "width": width, "height": height, "scheme": scheme}
        )
        if ready:
            self.run("await has_status('Ready.');")

    def run(self, body, *values):
        """Returns what a function body returns. It reads ``page`` of Playwright, and ``values``; ``has_status`` waits for a text."""
        return self._process.run(STATUS + body, *values)

    def text(self, name):
        """Returns the text of an element."""
        return self.run("return page.textContent(`#${values[0]}`);", name)

    def number(self, name):
        """Returns the number in an element, or None."""
        text = self.text(name).replace(",", "")
        return None if text == "\N{EN DASH}" else float(text)

    def click(self, name, then):
        """Clicks a button, and waits for a text in the status."""
        return self.run(
            "await page.click(`#${values[0]}`); await has_status(values[1]); return page.textContent('#status');", name, then
        )

    def state(self):
        """Saves the state. Returns the bytes of the file, and its arrays."""
        content = self.run(
            """
            const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
            const chunks = [];
            for await (const chunk of await download.createReadStream()) chunks.push(chunk);
            return new Uint8Array(Buffer.concat(chunks));
            """
        )
        with np.load(io.BytesIO(content)) as arrays:
            return content, dict(arrays)

    def load(self, content, then):
        """Loads a state, and waits for a text in the status. Returns the status."""
        self.run(
            "await page.setInputFiles('#load', { name: 'my.npz', mimeType: 'application/zip', buffer: Buffer.from(values[0]) });"
            "await has_status(values[1]);",
            content,
            then,
        )
        return self.text("status")

    def evaluated(self):
        """Returns the mean return of the button Evaluate."""
        return float(self.click("evaluate", "Greedy policy: mean return").split()[4])

    def problems(self):
        """Returns messages in the console, requests that failed, and requests to other places."""
        return self.run("return problems;")

    def close(self):
        """Ends Chromium and node."""
        self._process.run("await globalThis.browser?.close();")
        self._process.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the page of CartPole-v1 at ``PLACE``."""
    root = tmp_path_factory.mktemp("site")
    write_learning_page(root / PLACE, "CartPole-v1", javascript.ROOT)
    return root


@pytest.fixture(scope="module")
def browser(site):
    """Chromium, and a host of static files."""
    handler = functools.partial(Silent, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = Browser(f"http://127.0.0.1:{server.server_port}")
        yield opened
        opened.close()
        server.shutdown()


def differ(state, other):
    """Names of the networks' parameters that differ."""
    return {name for name in state if "_network." in name and not (state[name] == other[name]).all()}


@pytest.fixture(scope="module")
def learned(browser):
    """The file of a state that the page has learned, after checks of the way to it."""
    browser.open()
    _, before = browser.state()
    assert browser.evaluated() < 50
    assert browser.number("updates") == 0
    browser.click("start", "Solved: ")  # waits for a minute at most
    updates = browser.number("updates")
    assert updates >= 50
    assert browser.number("steps") == updates * 16 * 8
    assert 0 < browser.number("entropy") < np.log(2)
    assert browser.evaluated() >= 475
    content, after = browser.state()
    assert differ(after, before) >= {name for name in before if name.startswith(("actor", "critic"))}
    assert browser.problems() == []
    return content


def test_the_policy_that_the_page_learned_plays_as_well_in_python(learned, site, tmp_path):
    learner = Learner.load(site / PLACE / "train_step.onnx")
    (tmp_path / "learned.npz").write_bytes(learned)
    learner.load_state(tmp_path / "learned.npz")
    assert greedy_return(learner, "CartPole-v1", seed=1000, episodes=20) >= 475


def test_a_state_that_the_page_saved_is_loaded_and_learning_goes_on(browser, learned):
    browser.open(width=390, height=844, scheme="dark")
    assert browser.evaluated() < 50
    assert browser.load(learned, "Loaded") == "Loaded my.npz. Start continues learning from it."
    assert browser.evaluated() >= 475
    browser.run("await page.selectOption('#speed', '16');")
    browser.click("start", "Learning.")
    browser.run("await page.waitForFunction(() => Number(document.getElementById('updates').textContent) >= 3);")
    browser.click("start", "Paused.")
    with np.load(io.BytesIO(learned)) as before:
        assert differ(browser.state()[1], before)
    assert browser.problems() == []


def test_a_state_of_python_is_loaded_as_it_is_and_other_files_are_refused_in_words(browser, site, tmp_path):
    learner = Learner.load(site / PLACE / "train_step.onnx", seed=3)
    generator = np.random.default_rng(0)
    observation = generator.standard_normal((4, 2, 4), dtype=np.float32)
    rollout = {
        "observation": observation,
        "action": generator.integers(2, size=(4, 2)),
        "reward": np.ones((4, 2), np.float32),
        "next_observation": observation,
        "done": np.zeros((4, 2), bool),
        "terminated": np.zeros((4, 2), bool),
    }
    learner.step(rollout)
    learner.lr = 0.02
    learner.save_state(tmp_path / "python.npz")
    content = (tmp_path / "python.npz").read_bytes()
    browser.open()
    browser.load(content, "Loaded my.npz.")
    assert browser.text("lr-text") == "0.02"
    _, arrays = browser.state()
    with np.load(tmp_path / "python.npz") as expected:
        assert set(arrays) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)
    assert "expected one that was saved with this very train_step.onnx" in browser.load(
        (site / PLACE / "train_step.state.npz").read_bytes(), "expected"
    )
    browser.run("await page.reload(); await has_status('Ready.');")
    assert browser.load(b"no state", "state: ").startswith("state: expected")
    assert browser.run("return page.getAttribute('#status', 'class');") == "wrong"
    browser.click("start", "Learning.")  # the page works on
    assert browser.run("return page.getAttribute('#status', 'class');") == ""


def test_the_controls_change_what_they_name(browser):
    browser.open()
    _, exported = browser.state()
    browser.run(
        """
        await page.selectOption("#num_envs", "2");
        await page.fill("#lr", "-2");
        await page.click("#start");
        await page.waitForFunction(() => Number(document.getElementById("updates").textContent) >= 5);
        """
    )
    browser.click("start", "Paused.")
    updates = browser.number("updates")
    assert updates * 16 * 2 <= browser.number("steps") < (updates + 1) * 16 * 2
    _, learned = browser.state()
    assert learned["lr"] == pytest.approx(0.01)
    assert differ(learned, exported)
    browser.run("await page.waitForTimeout(300);")
    assert browser.number("updates") == updates  # it is paused
    browser.run("await page.fill('#seed', '7');")
    browser.click("reset", "Back at the exported weights.")
    browser.run("await page.waitForFunction(() => document.getElementById('updates').textContent === '0');")
    _, fresh = browser.state()
    assert not differ(fresh, exported)
    assert fresh["lr"] == pytest.approx(0.01)  # what was set stays set
    assert fresh["random"] != exported["random"]
    # 50 steps a second, of two environments.
    browser.run("await page.selectOption('#speed', '1');")
    browser.click("start", "Learning.")
    browser.run("await page.waitForTimeout(2000);")
    browser.click("start", "Paused.")
    browser.run("await page.waitForTimeout(300);")
    assert 0 < browser.number("steps") <= 2 * 50 * 4
    assert browser.problems() == []


def test_mouse_finger_and_keys_pull_the_tip(browser):
    browser.open()
    pulls = browser.run(
        """
        return page.evaluate(async () => {
          const [{ Scene }, { ENVIRONMENTS }] = await Promise.all([import("./scene.js"), import("./environments.js")]);
          const canvas = document.createElement("canvas");
          document.body.append(canvas);
          canvas.setPointerCapture = () => {}; // these events have no real pointer
          const results = {};
          for (const [name, kind] of Object.entries(ENVIRONMENTS)) {
            const scene = new Scene(canvas, name);
            const state = kind.start((low, high) => (low + high) / 2);
            const pull = () => Math.sign(scene.pull(state));
            const send = (type, x) => {
              const { left, top, width, height } = canvas.getBoundingClientRect();
              canvas.dispatchEvent(new PointerEvent(type, { clientX: left + x * width, clientY: top + height / 2, pointerId: 1 }));
            };
            results[name] = [pull()];
            send("pointermove", 0.9); // no button is down
            results[name].push(pull());
            send("pointerdown", 0.9);
            results[name].push(pull());
            send("pointermove", 0.1);
            results[name].push(pull());
            scene.draw(state);
            send("pointerup", 0.1);
            results[name].push(pull());
            canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
            results[name].push(pull());
            canvas.dispatchEvent(new KeyboardEvent("keyup", { key: "ArrowRight" }));
            results[name].push(pull());
          }
          return results;
        });
        """
    )
    # The angle grows when the tip moves to the right, but in Pendulum-v1 when it moves to the left.
    to_the_right = [0, 0, 1, -1, 0, 1, 0]
    assert pulls == {
        "CartPole-v1": to_the_right,
        "Acrobot-v1": to_the_right,
        "Pendulum-v1": [-pull for pull in to_the_right],
    }


def test_pulling_the_pole_far_to_one_side_ends_the_episode(browser, learned):
    browser.open()
    browser.load(learned, "Loaded")
    steps = browser.run(
        """
        const step = async () => Number(/\\d+/.exec(await page.textContent("#scene-text"))[0]);
        while ((await step()) < 100) await page.waitForTimeout(100); // the learned policy balances
        const before = await step();
        const { x, y, width, height } = await page.locator("#scene").boundingBox();
        await page.mouse.move(x + 0.99 * width, y + 0.7 * height);
        await page.mouse.down();
        await page.waitForTimeout(2000);
        const after = await step();
        await page.mouse.up();
        return [before, after];
        """
    )
    assert steps[0] >= 100 > steps[1]
    assert browser.problems() == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen_and_every_control_has_a_name(browser, width):
    browser.open(width=width, height=800)
    sizes, unnamed = browser.run(
        """
        return page.evaluate(() => {
          const named = (element) => element.labels?.length || element.ariaLabel || element.textContent.trim();
          const controls = [...document.querySelectorAll("button, select, input, canvas")];
          const root = document.documentElement;
          return [[root.scrollWidth, root.clientWidth], controls.filter((control) => !named(control)).map(({ id }) => id)];
        });
        """
    )
    assert sizes == [width, width]
    assert unnamed == []


def test_only_files_of_the_page_run_as_programs(browser):
    browser.open()
    with pytest.raises(javascript.JavaScriptError, match="Content Security Policy"):
        browser.run("await page.addScriptTag({ content: 'document.title = 1;' });")


def test_a_browser_loads_the_files_that_the_export_counts_and_no_others(browser, site):
    browser.open()
    loaded = browser.run(
        """
        return page.evaluate(() => performance.getEntriesByType("resource").map(({ name }) => name.replace(document.baseURI, "")));
        """
    )
    assert {"index.html", *(name for name in loaded if not name.startswith("data:"))} == set(downloads(site / PLACE))


def changed(settings, **changes):
    return json.dumps({**json.loads(settings), **changes})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("page.json", None, "page.json: expected the file beside this page, got HTTP status 404"),
        ("page.json", lambda text: "{", "page.json: expected environment to be one of CartPole-v1, "),
        ("page.json", lambda text: changed(text, environment="Hopper-v5"), 'Pendulum-v1, got "Hopper-v5"'),
        (
            "page.json",
            lambda text: changed(text, num_steps=0),
            "page.json: expected num_steps to be an integer of at least 1, got 0",
        ),
        ("page.json", lambda text: changed(text, learner="other.onnx"), "path: expected a file, found none at other.onnx"),
        ("train_step.state.npz", None, "path: expected train_step.state.npz beside train_step.onnx"),
        (
            "ort/ort.wasm.min.mjs",
            None,
            "./ort/ort.wasm.min.mjs: expected this file of the npm package onnxruntime-web beside the page",
        ),
        ("ort/ort-wasm-simd-threaded.wasm", None, "wasm"),
        ("runtime.js", None, "./runtime.js: expected this file of a2c_compiled beside the page"),
    ],
)
def test_a_file_that_is_missing_or_wrong_is_named_on_the_page(browser, site, file, change, message):
    folder = site / "changed"
    shutil.copytree(site / PLACE, folder, dirs_exist_ok=True)
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(change((folder / file).read_text()))
    browser.open("changed", ready=False)
    browser.run("await has_status(values[0]);", message)
    assert browser.run("return page.getAttribute('#status', 'class');") == "wrong"
    assert browser.run("return page.isDisabled('#start');")
