// The boxes of findings on one canvas over the map: far away a mark, near a box with its class; chosen, decided and
// rejected ones look different without colour too.

const NEAR_PX = 11; // a box smaller than this on the screen is drawn as a mark
const NAMED_PX = 36; // one larger than this carries its class
const LARGE = window.innerWidth >= 3000 ? 1.6 : 1; // on a 4K screen, as the panels
const REACH_PX = 8; // how far beside a mark a click still means it

function polygon(...corners) {
  return (ink, x, y, r) => {
    corners.forEach(([dx, dy], n) => ink[n ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
    ink.closePath();
  };
}

function regular(n) {
  const turn = (k) => (2 * Math.PI * k) / n - Math.PI / 2;
  return polygon(...Array.from({ length: n }, (_, k) => [1.05 * Math.cos(turn(k)), 1.05 * Math.sin(turn(k))]));
}

const SHAPES = {
  pentagon: regular(5),
  hexagon: regular(6),
  left: polygon([-1, 0], [0.8, -1], [0.8, 1]),
  right: polygon([1, 0], [-0.8, -1], [-0.8, 1]),
  cross: polygon(
    [-1, -0.5], [-0.5, -1], [0, -0.5], [0.5, -1], [1, -0.5], [0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5], [-0.5, 1],
    [-1, 0.5], [-0.5, 0],
  ),
  triangle: polygon([0, -1], [1, 0.8], [-1, 0.8]),
  wedge: polygon([0, 1], [1, -0.8], [-1, -0.8]),
  diamond: polygon([0, -1.15], [1.15, 0], [0, 1.15], [-1.15, 0]),
  square: polygon([-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]),
  ring: (ink, x, y, r) => ink.arc(x, y, r - 1, 0, 2 * Math.PI),
};

export function findingsLayer(L) {
  return L.Layer.extend({
    initialize() {
      this._findings = [];
      this._chosen = null;
    },

    onAdd(map) {
      this._canvas = L.DomUtil.create("canvas", "wsi-findings leaflet-zoom-animated");
      this.getPane().appendChild(this._canvas);
      this._reset();
    },

    onRemove() {
      this._canvas.remove();
    },

    getEvents() {
      return { viewreset: this._reset, moveend: this._reset, resize: this._reset, zoomanim: this._follow };
    },

    show(findings, chosen) {
      this._findings = findings;
      this._chosen = chosen;
      if (this._map) this._draw();
    },

    // the smallest finding under a point of the map's container
    at(point) {
      let best = null;
      for (const finding of this._findings) {
        const box = this._onScreen(finding);
        const inside =
          point.x >= box.x - REACH_PX && point.x <= box.x + box.w + REACH_PX &&
          point.y >= box.y - REACH_PX && point.y <= box.y + box.h + REACH_PX;
        if (!inside) continue;
        const far = Math.hypot(point.x - box.x - box.w / 2, point.y - box.y - box.h / 2);
        if (!best || far < best.far) best = { far, finding };
      }
      return best && best.finding;
    },

    _onScreen(finding) {
      const a = this._map.latLngToContainerPoint([finding.y0, finding.x0]);
      const b = this._map.latLngToContainerPoint([finding.y1, finding.x1]);
      return { x: a.x, y: a.y, w: b.x - a.x, h: b.y - a.y };
    },

    _follow(event) {
      const scale = this._map.getZoomScale(event.zoom);
      const offset = this._map._latLngToNewLayerPoint(this._corner, event.zoom, event.center);
      L.DomUtil.setTransform(this._canvas, offset, scale);
    },

    _reset() {
      const size = this._map.getSize();
      const ratio = window.devicePixelRatio || 1;
      // the surroundings are drawn too, so that nothing appears late while the map is dragged
      this._pad = size.multiplyBy(0.25).round();
      const whole = size.add(this._pad.multiplyBy(2));
      const topLeft = this._map.containerPointToLayerPoint(this._pad.multiplyBy(-1));
      this._corner = this._map.layerPointToLatLng(topLeft);
      this._canvas.width = whole.x * ratio;
      this._canvas.height = whole.y * ratio;
      this._canvas.style.width = `${whole.x}px`;
      this._canvas.style.height = `${whole.y}px`;
      L.DomUtil.setPosition(this._canvas, topLeft);
      this._draw();
    },

    _draw() {
      const ratio = window.devicePixelRatio || 1;
      const ink = this._canvas.getContext("2d");
      ink.setTransform(1, 0, 0, 1, 0, 0);
      ink.clearRect(0, 0, this._canvas.width, this._canvas.height);
      ink.setTransform(ratio, 0, 0, ratio, this._pad.x * ratio, this._pad.y * ratio);
      const size = this._map.getSize();
      const later = [];
      for (const finding of this._findings) {
        const box = this._onScreen(finding);
        const gone =
          box.x + box.w < -this._pad.x || box.y + box.h < -this._pad.y ||
          box.x > size.x + this._pad.x || box.y > size.y + this._pad.y;
        if (gone) continue;
        if (finding.id === this._chosen) later.push([finding, box]);
        else this._one(ink, finding, box, false);
      }
      for (const [finding, box] of later) this._one(ink, finding, box, true);
    },

    _one(ink, finding, box, chosen) {
      ink.save();
      if (finding.state === "reject") ink.globalAlpha = 0.45;
      const near = Math.max(box.w, box.h) >= NEAR_PX;
      const outline = near ? this._frame(ink, finding, box) : this._mark(ink, finding, box);
      if (finding.state === "reject") this._crossed(ink, box);
      if (chosen) {
        ink.globalAlpha = 1;
        const grow = near ? 6 : 9;
        ink.setLineDash([]);
        for (const [width, color] of [[4, "rgba(255,255,255,.95)"], [2, "#111"]]) {
          ink.lineWidth = width;
          ink.strokeStyle = color;
          this._corners(ink, { x: box.x - grow, y: box.y - grow, w: box.w + 2 * grow, h: box.h + 2 * grow });
        }
      }
      if (near && Math.max(box.w, box.h) >= NAMED_PX) this._name(ink, finding, box);
      ink.restore();
      return outline;
    },

    _frame(ink, finding, box) {
      ink.setLineDash([]);
      ink.lineWidth = 4 * LARGE;
      ink.strokeStyle = "rgba(255,255,255,.85)";
      ink.strokeRect(box.x, box.y, box.w, box.h);
      ink.lineWidth = 2 * LARGE;
      ink.strokeStyle = finding.color;
      if (!finding.abnormal) ink.setLineDash([5, 3]);
      ink.strokeRect(box.x, box.y, box.w, box.h);
    },

    _mark(ink, finding, box) {
      const x = box.x + box.w / 2;
      const y = box.y + box.h / 2;
      const r = 5 * LARGE;
      ink.beginPath();
      SHAPES[finding.shape](ink, x, y, r);
      ink.lineWidth = 3.5;
      ink.strokeStyle = "rgba(255,255,255,.9)";
      ink.stroke();
      ink.lineWidth = 2;
      ink.strokeStyle = finding.color;
      ink.stroke();
      if (!finding.abnormal) return;
      ink.fillStyle = finding.color;
      ink.fill();
    },

    _crossed(ink, box) {
      ink.lineWidth = 1.5;
      ink.strokeStyle = "#333";
      ink.beginPath();
      ink.moveTo(box.x, box.y);
      ink.lineTo(box.x + box.w, box.y + box.h);
      ink.moveTo(box.x + box.w, box.y);
      ink.lineTo(box.x, box.y + box.h);
      ink.stroke();
    },

    _corners(ink, box) {
      const arm = Math.max(6, Math.min(box.w, box.h) / 4);
      ink.beginPath();
      for (const [cx, cy, dx, dy] of [
        [box.x, box.y, 1, 1], [box.x + box.w, box.y, -1, 1],
        [box.x, box.y + box.h, 1, -1], [box.x + box.w, box.y + box.h, -1, -1],
      ]) {
        ink.moveTo(cx + dx * arm, cy);
        ink.lineTo(cx, cy);
        ink.lineTo(cx, cy + dy * arm);
      }
      ink.stroke();
    },

    _name(ink, finding, box) {
      const sign = { accept: "✓ ", relabel: "✎ ", reject: "✕ ", draw: "+ " }[finding.state] || "";
      const text = sign + finding.name;
      ink.font = `600 ${Math.round(11 * LARGE)}px ${getComputedStyle(document.body).fontFamily}`;
      const width = ink.measureText(text).width + 8;
      const height = 15 * LARGE;
      ink.fillStyle = finding.color;
      ink.fillRect(box.x - 1, box.y - height - 1, width, height);
      ink.fillStyle = finding.dark ? "#fff" : "#111";
      ink.fillText(text, box.x + 3, box.y - 5 * LARGE);
    },
  });
}
