// Draws the charts of a page with uPlot, in the theme's colours, as wide as their place; again when either changes.
(() => {
  const dollars = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 6 });
  const counts = new Intl.NumberFormat("en-US", { notation: "compact" });
  const palette = ["--lava", "--chart-2", "--chart-3", "--chart-4"];
  const whole = Array.from({ length: 15 }, (_, power) => [1, 2, 5].map((one) => one * 10 ** power)).flat(); // steps of an axis of counts
  const drawn = new Map();

  const draw = (place) => {
    const spec = JSON.parse(place.dataset.chart);
    const css = getComputedStyle(place);
    const text = css.getPropertyValue("--chart-text").trim();
    const grid = css.getPropertyValue("--chart-grid").trim();
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, font: "12px sans-serif" };
    const shown = (unit) => (value) => (value === null ? "–" : unit === "nanos" ? dollars.format(value) : value.toLocaleString("en-US"));
    const unit = spec.series[0].unit;
    const time = new Intl.DateTimeFormat(undefined, spec.byDay
      ? { month: "short", day: "numeric", timeZone: "UTC" }
      : { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
    // Where nobody points at a time the legend tells of the newest.
    const tellNewest = (chart) => { if (chart.legend.idx == null) chart.setLegend({ idx: spec.times.length - 1 }, false); };
    drawn.get(place)?.destroy();
    place.replaceChildren();
    drawn.set(place, new uPlot({
      width: Math.max(place.clientWidth, 200),
      height: place.clientWidth < 480 ? 200 : 240,
      series: [
        { label: spec.byDay ? "Day" : "Time", value: (_, at) => (at == null ? "–" : time.format(new Date(at * 1e3))) },
        ...spec.series.map((one, n) => ({
          label: one.label,
          stroke: css.getPropertyValue(palette[n % palette.length]).trim(),
          fill: n === 0 ? css.getPropertyValue("--chart-fill").trim() : undefined,
          width: 2,
          points: { show: spec.times.length < 2 },
          value: (_, value) => shown(one.unit)(value),
        })),
      ],
      axes: [
        { ...axis, space: 70 },
        { ...axis, size: 64, incrs: unit === "nanos" ? undefined : whole, values: (_, ticks) => ticks.map((tick) => (unit === "nanos" ? dollars.format(tick) : counts.format(tick))) },
      ],
      scales: { y: { range: (_, low, high) => [Math.min(low, 0), high > 0 ? high * 1.1 : 1] } },
      ...(spec.byDay ? { tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC") } : {}),
      cursor: { y: false },
      hooks: { ready: [tellNewest], setLegend: [tellNewest] },
    }, [spec.times, ...spec.series.map((one) => one.values.map(Number))], place));
  };

  const places = (part) => [...(part.matches?.("[data-chart]") ? [part] : []), ...part.querySelectorAll("[data-chart]")];
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = drawn.get(target);
      if (chart && Math.abs(chart.width - target.clientWidth) > 1) chart.setSize({ width: target.clientWidth, height: chart.height });
    }
  });
  const show = (part) => {
    for (const place of drawn.keys()) {
      if (!place.isConnected) { drawn.get(place).destroy(); drawn.delete(place); }
    }
    for (const place of places(part)) { draw(place); resized.observe(place); }
  };

  document.addEventListener("lava:theme", () => show(document));
  document.addEventListener("htmx:load", (event) => { if (event.detail.elt !== document.body) show(event.detail.elt); });
  show(document);
})();
