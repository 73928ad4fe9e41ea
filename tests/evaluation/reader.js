// What a reader does with the page, one step after the other, and what it shows after each
(async () => {
  const $ = id => document.getElementById(id), said = {};
  const wait = async () => {
    for (let turn = 0; turn < 4; turn++) await new Promise(next => setTimeout(next, 20));
  };
  const press = (key, target = document.body, shiftKey = false) =>
    target.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
  const look = async (name, x = 30, y = 20) => {
    await wait();
    said[name] = {
      image: document.documentElement.dataset.ready,
      where: $("where").textContent,
      rows: [...document.querySelectorAll("#pixel tr")].map(row => row.innerText),
      key: $("key").textContent,
      images: $("list").childElementCount,
      overflow: document.documentElement.scrollWidth - innerWidth,
      pixel: [...$("map").getContext("2d").getImageData(x, y, 1, 1).data],
    };
  };
  while (!document.documentElement.dataset.ready) await wait();
  await look("begin");
  press(","); await look("comma");
  $("scale").value = 0; $("scale").dispatchEvent(new Event("input")); await look("slider");
  $("safe").click(); await look("safe");
  press("ArrowRight", $("pixels"), true); await look("moved");
  const { left, top, width, height } = $("pixels").getBoundingClientRect();
  $("pixels").dispatchEvent(new PointerEvent("pointerdown",
    { clientX: left + width * 50.5 / 96, clientY: top + height * 10.5 / 64 })); await look("tapped");
  press("5"); await look("confidence");
  press("4"); await look("error");
  press("n"); await look("next");
  $("classes").lastElementChild.click(); await look("filtered");
  document.body.append(Object.assign(document.createElement("pre"), { id: "said" }));
  $("said").textContent = JSON.stringify(said);
})();
