// Drives the page in Chromium and prints what it found as JSON:  node drive_playground.mjs PLAYWRIGHT CHROMIUM URL [PICTURES]

import { createRequire } from "node:module";

const [playwright, executablePath, url, pictures] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
const found = { hosts: [], errors: [], grids: {} };
page.on("request", (request) => found.hosts.push(new URL(request.url()).host || new URL(request.url()).protocol));
page.on("pageerror", (error) => found.errors.push(error.message));
page.on("console", (message) => message.type() === "error" && found.errors.push(message.text()));

const shown = () => page.evaluate(() => JSON.parse(document.getElementById("grid").dataset.shown));
const settled = (wish) =>
  page.waitForFunction((wish) => {
    const shown = JSON.parse(document.getElementById("grid").dataset.shown ?? "{}");
    return Object.entries(wish).every(([key, value]) => shown[key] === value);
  }, wish);
const keep = async (name, wish) => {
  await settled(wish);
  const picture = await page.evaluate(() => {
    const { width, height } = document.getElementById("grid");
    const { data } = document.getElementById("grid").getContext("2d").getImageData(0, 0, width, height);
    return { width, height, data: Array.from(data) };
  });
  const command = await page.textContent("#command");
  found.grids[name] = { ...picture, command, ...(await shown()) };
};
const photograph = (name) => pictures && page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });

await page.goto(url);
await page.waitForSelector("#app:not([hidden])");
await keep("first", { seed: 0, path: 0 });
await page.waitForFunction(() => document.getElementById("time").textContent.includes("ms a grid"));
await photograph("wide");

await page.focus('input[name="label"][value="turn"]'); // by keyboard alone
await page.keyboard.press("ArrowRight");
await page.keyboard.press("ArrowRight");
await page.focus("#guidance");
for (let i = 0; i < 10; i++) await page.keyboard.press("ArrowRight");
await keep("guided", { label: "1", guidance: 0.5 });
await page.selectOption("#count", { index: 0 });
await page.fill("#seed", "123456789");
await keep("seeded", { seed: 123456789, label: "1" });

const slider = await page.locator("#path").boundingBox();
const middle = slider.y + slider.height / 2;
await page.mouse.move(slider.x + 8, middle);
await page.mouse.down();
found.moving = [];
for (const share of [0.2, 0.4, 0.6, 0.8]) {
  await page.mouse.move(slider.x + slider.width * share, middle, { steps: 5 });
  await page.waitForFunction((share) => Math.abs(JSON.parse(document.getElementById("grid").dataset.shown).path - share) < 0.05, share);
  found.moving.push(await page.evaluate(() => document.getElementById("grid").toDataURL()));
}
await page.mouse.up();

await page.click("#play");
await page.waitForFunction(() => JSON.parse(document.getElementById("grid").dataset.shown).seed > 123456789); // a whole way
await page.click("#play");
found.walked = await shown();

const download = page.waitForEvent("download");
await page.click("#save");
found.download = (await download).suggestedFilename();
await page.click("#fresh");
await page.waitForFunction(() => JSON.parse(document.getElementById("grid").dataset.shown).seed < 1e6);
found.time = await page.textContent("#time");

await page.setViewportSize({ width: 360, height: 740 });
found.narrow = await page.evaluate(() => document.documentElement.scrollWidth);
found.targets = await page.evaluate(() =>
  [...document.querySelectorAll("button, select, input[type=number], input[type=range], .chip")]
    .filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect().height));
if (pictures) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    for (const [name, width] of [["phone", 390], ["wide", 1200]]) {
      await page.setViewportSize({ width, height: name === "phone" ? 844 : 800 });
      await page.reload();
      await page.waitForFunction(() => document.getElementById("time").textContent.includes("median of 3"));
      await photograph(`${name}-${scheme}`);
    }
  }
}
await browser.close();
console.log(JSON.stringify(found));
