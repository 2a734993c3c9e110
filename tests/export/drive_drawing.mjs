// Draws on the page in Chromium and prints what it found as JSON:  node drive_drawing.mjs PLAYWRIGHT CHROMIUM URL [PICTURES]

import { createRequire } from "node:module";

const [playwright, executablePath, url, pictures] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
const found = { hosts: [], encoderAsked: [], errors: [], steps: {} };
page.on("request", (request) => {
  found.hosts.push(new URL(request.url()).host || new URL(request.url()).protocol);
  if (request.url().endsWith("encoder.onnx")) found.encoderAsked.push(Boolean(found.opened));
});
page.on("pageerror", (error) => found.errors.push(error.message));
page.on("console", (message) => message.type() === "error" && found.errors.push(message.text()));

const shown = () => page.evaluate(() => JSON.parse(document.getElementById("drawing").dataset.shown ?? "null"));
const changed = async (act) => {
  await page.evaluate(() => delete document.getElementById("drawing").dataset.shown);
  await act();
  await page.waitForFunction(() => document.getElementById("drawing").dataset.shown);
  for (let before, now; !now || before !== now; ) { // until the latest wish was served
    [before, now] = [now, JSON.stringify(await shown())];
    await page.waitForTimeout(150);
  }
};
const keep = async (name) => {
  const images = await page.evaluate(() =>
    [...document.querySelectorAll("#again canvas, #as-classes canvas")].map((canvas) =>
      Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)));
  const texts = await page.evaluate(() => Object.fromEntries(["verdict", "bars", "hint", "draw-time"].map((id) => [id, document.getElementById(id).textContent])));
  const visible = await page.evaluate(() => Object.fromEntries(["hint", "classified", "edited", "cursor"].map((id) => [id, document.getElementById(id).checkVisibility()])));
  found.steps[name] = { ...(await shown()), images, ...texts, visible };
};

await page.goto(url);
await page.waitForSelector("#app:not([hidden])");
await page.focus('input[name="mode"][value="samples"]');
found.opened = true;
await changed(() => page.keyboard.press("ArrowRight"));
await keep("empty");

const box = await page.locator("#drawing").boundingBox();
const size = await page.evaluate(() => document.getElementById("drawing").width);
const at = (x, y) => [box.x + ((x + 0.5) * box.width) / size, box.y + ((y + 0.5) * box.height) / size];
if (await page.locator("#colour").isVisible()) await page.fill("#colour", "#ff8020");
await changed(async () => {
  await page.mouse.move(...at(0, 0));
  await page.mouse.down();
  await page.mouse.move(...at(0, 2)); // the cell between is painted too
  await page.mouse.up();
});
await keep("mouse");

await page.focus("#drawing");
await changed(async () => {
  for (const key of ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", " "]) await page.keyboard.press(key);
});
await keep("keys");

await changed(() => page.fill("#vary", "0.6"));
await keep("varied");

await changed(async () => {
  await page.mouse.click(...at(0, 1), { button: "right" });
  await page.keyboard.press("Backspace");
});
await keep("erased");

await changed(() => page.click("#clear"));
await keep("cleared");
await changed(() => page.click("#from-sample"));
await changed(() => page.click("#from-sample"));
await keep("sample");

await page.setViewportSize({ width: 360, height: 800 });
found.narrow = await page.evaluate(() => document.documentElement.scrollWidth);
found.targets = await page.evaluate(() =>
  [...document.querySelectorAll("button, input[type=range], .chip")]
    .filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect().height));
if (pictures) await page.screenshot({ path: `${pictures}/drawing-phone.png`, fullPage: true });
await page.check('input[name="mode"][value="samples"]');
found.back = await page.evaluate(() => ["app", "draw"].map((id) => document.getElementById(id).checkVisibility()));
await browser.close();
console.log(JSON.stringify(found));
