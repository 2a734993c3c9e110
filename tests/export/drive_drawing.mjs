// Draws on the page in Chromium and prints the results as JSON:  node drive_drawing.mjs PLAYWRIGHT CHROMIUM URL [SCREENSHOTS]

import { createRequire } from "node:module";

const [playwright, executablePath, url, screenshots] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
const results = { hosts: [], encoderRequests: [], errors: [], steps: {} };
page.on("request", (request) => {
  results.hosts.push(new URL(request.url()).host || new URL(request.url()).protocol);
  if (request.url().endsWith("encoder.onnx")) results.encoderRequests.push(Boolean(results.opened));
});
page.on("pageerror", (error) => results.errors.push(error.message));
page.on("console", (message) => message.type() === "error" && results.errors.push(message.text()));

const rendered = () => page.evaluate(() => JSON.parse(document.getElementById("drawing").dataset.rendered ?? "null"));
const update = async (act) => {
  await page.evaluate(() => delete document.getElementById("drawing").dataset.rendered);
  await act();
  await page.waitForFunction(() => document.getElementById("drawing").dataset.rendered);
  for (let before, now; !now || before !== now; ) { // until the latest drawing was rendered
    [before, now] = [now, JSON.stringify(await rendered())];
    await page.waitForTimeout(150);
  }
};
const record = async (name) => {
  const images = await page.evaluate(() =>
    [...document.querySelectorAll("#reconstruction canvas, #reclassed canvas")].map((canvas) =>
      Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)));
  const texts = await page.evaluate(() => Object.fromEntries(["prediction", "bars", "hint", "draw-time"].map((id) => [id, document.getElementById(id).textContent])));
  const visible = await page.evaluate(() => Object.fromEntries(["hint", "classification", "edits", "cursor"].map((id) => [id, document.getElementById(id).checkVisibility()])));
  results.steps[name] = { ...(await rendered()), images, ...texts, visible };
};

await page.goto(url);
await page.waitForSelector("#app:not([hidden])");
await page.focus('input[name="mode"][value="sample"]');
results.opened = true;
await update(() => page.keyboard.press("ArrowRight"));
await record("empty");

const box = await page.locator("#drawing").boundingBox();
const size = await page.evaluate(() => document.getElementById("drawing").width);
const at = (x, y) => [box.x + ((x + 0.5) * box.width) / size, box.y + ((y + 0.5) * box.height) / size];
if (await page.locator("#colour").isVisible()) await page.fill("#colour", "#ff8020");
await update(async () => {
  await page.mouse.move(...at(0, 0));
  await page.mouse.down();
  await page.mouse.move(...at(0, 2)); // the pixel between is painted too
  await page.mouse.up();
});
await record("mouse");

await page.focus("#drawing");
await update(async () => {
  for (const key of ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", " "]) await page.keyboard.press(key);
});
await record("keys");

await update(() => page.fill("#strength", "0.6"));
await record("varied");

await update(async () => {
  await page.mouse.click(...at(0, 1), { button: "right" });
  await page.keyboard.press("Backspace");
});
await record("erased");

await update(() => page.click("#clear"));
await record("cleared");
await update(() => page.click("#from-sample"));
await update(() => page.click("#from-sample"));
await record("sample");

await page.setViewportSize({ width: 360, height: 800 });
results.phoneWidth = await page.evaluate(() => document.documentElement.scrollWidth);
results.heights = await page.evaluate(() =>
  [...document.querySelectorAll("button, input[type=range], .chip")]
    .filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect().height));
if (screenshots) await page.screenshot({ path: `${screenshots}/drawing-phone.png`, fullPage: true });
await page.check('input[name="mode"][value="sample"]');
results.modesVisible = await page.evaluate(() => ["app", "draw"].map((id) => document.getElementById(id).checkVisibility()));
await browser.close();
console.log(JSON.stringify(results));
