// Drives the page in Chromium and prints the results as JSON:  node drive_playground.mjs PLAYWRIGHT CHROMIUM URL [SCREENSHOTS]

import { createRequire } from "node:module";

const [playwright, executablePath, url, screenshots] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
const results = { hosts: [], errors: [], grids: {} };
page.on("request", (request) => results.hosts.push(new URL(request.url()).host || new URL(request.url()).protocol));
page.on("pageerror", (error) => results.errors.push(error.message));
page.on("console", (message) => message.type() === "error" && results.errors.push(message.text()));

const rendered = () => page.evaluate(() => JSON.parse(document.getElementById("grid").dataset.rendered));
const waitUntilRendered = (settings) =>
  page.waitForFunction((settings) => {
    const rendered = JSON.parse(document.getElementById("grid").dataset.rendered ?? "{}");
    return Object.entries(settings).every(([key, value]) => rendered[key] === value);
  }, settings);
const record = async (name, settings) => {
  await waitUntilRendered(settings);
  const image = await page.evaluate(() => {
    const { width, height } = document.getElementById("grid");
    const { data } = document.getElementById("grid").getContext("2d").getImageData(0, 0, width, height);
    return { width, height, data: Array.from(data) };
  });
  const command = await page.textContent("#command");
  results.grids[name] = { ...image, command, ...(await rendered()) };
};
const screenshot = (name) => screenshots && page.screenshot({ path: `${screenshots}/${name}.png`, fullPage: true });

await page.goto(url);
await page.waitForSelector("#app:not([hidden])");
await record("first", { seed: 0, interpolation: 0 });
await page.waitForFunction(() => document.getElementById("time").textContent.includes("ms each"));
await screenshot("wide");

await page.focus('input[name="label"][value="all"]'); // with the keyboard only
await page.keyboard.press("ArrowRight");
await page.keyboard.press("ArrowRight");
await page.focus("#guidance");
for (let i = 0; i < 10; i++) await page.keyboard.press("ArrowRight");
await record("guided", { label: "1", guidance: 0.5 });
await page.selectOption("#count", { index: 0 });
await page.fill("#seed", "123456789");
await record("seeded", { seed: 123456789, label: "1" });

const slider = await page.locator("#interpolate").boundingBox();
const middle = slider.y + slider.height / 2;
await page.mouse.move(slider.x + 8, middle);
await page.mouse.down();
results.moving = [];
for (const fraction of [0.2, 0.4, 0.6, 0.8]) {
  await page.mouse.move(slider.x + slider.width * fraction, middle, { steps: 5 });
  await page.waitForFunction((fraction) => Math.abs(JSON.parse(document.getElementById("grid").dataset.rendered).interpolation - fraction) < 0.05, fraction);
  results.moving.push(await page.evaluate(() => document.getElementById("grid").toDataURL()));
}
await page.mouse.up();

await page.click("#animate");
await page.waitForFunction(() => JSON.parse(document.getElementById("grid").dataset.rendered).seed > 123456789); // the next seed
await page.click("#animate");
results.animated = await rendered();

const download = page.waitForEvent("download");
await page.click("#save");
results.download = (await download).suggestedFilename();
await page.click("#new-seed");
await page.waitForFunction(() => JSON.parse(document.getElementById("grid").dataset.rendered).seed < 1e6);
results.time = await page.textContent("#time");

await page.setViewportSize({ width: 360, height: 740 });
results.phoneWidth = await page.evaluate(() => document.documentElement.scrollWidth);
results.heights = await page.evaluate(() =>
  [...document.querySelectorAll("button, select, input[type=number], input[type=range], .chip")]
    .filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect().height));
if (screenshots) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    for (const [name, width] of [["phone", 390], ["wide", 1200]]) {
      await page.setViewportSize({ width, height: name === "phone" ? 844 : 800 });
      await page.reload();
      await page.waitForFunction(() => document.getElementById("time").textContent.includes("median of 3"));
      await screenshot(`${name}-${scheme}`);
    }
  }
}
await browser.close();
console.log(JSON.stringify(results));
