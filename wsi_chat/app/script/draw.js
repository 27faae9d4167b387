// Drawing one rectangle: by mouse with Leaflet's draw plugin, or by keys, which move and size a frame in the middle.

const FIRST_PX = 72; // side of the frame on the screen when it appears
const STEP_PX = 8;

export class Drawing {
  constructor(L, map, done, ended) {
    this.L = L;
    this.map = map;
    this.done = done;
    this.ended = ended;
    this.purpose = null;
    map.on("draw:created", (event) => {
      if (!this.purpose) return;
      this.finish(event.layer.getBounds());
    });
  }

  start(purpose) {
    this.stop();
    this.purpose = purpose;
    const style = { color: "#0b63ce", weight: 2, dashArray: "6 4", fillOpacity: 0.06, interactive: false };
    this.handler = new this.L.Draw.Rectangle(this.map, { showArea: false, repeatMode: false, shapeOptions: style });
    this.handler.enable();
    const middle = this.map.getSize().divideBy(2);
    const half = this.L.point(FIRST_PX / 2, FIRST_PX / 2);
    this.frame = this.L.rectangle(this._bounds(middle.subtract(half), middle.add(half)), style).addTo(this.map);
    this.map.on("mousedown", this._byMouse, this);
  }

  _byMouse() {
    if (this.frame) this.frame.remove();
    this.frame = null;
  }

  _bounds(a, b) {
    return this.L.latLngBounds(this.map.containerPointToLatLng(a), this.map.containerPointToLatLng(b));
  }

  // whether the key was for the drawing
  key(event) {
    if (!this.purpose) return false;
    if (event.key === "Escape") {
      this.stop();
      return true;
    }
    if (!this.frame) return false;
    if (event.key === "Enter") {
      this.finish(this.frame.getBounds());
      return true;
    }
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [];
    if (dx === undefined) return false;
    const bounds = this.frame.getBounds();
    const move = this.L.point(dx, dy).multiplyBy(STEP_PX);
    // y grows downward in these coordinates, so the north-west corner of Leaflet is the lower left one
    let a = this.map.latLngToContainerPoint([bounds.getSouth(), bounds.getWest()]);
    let b = this.map.latLngToContainerPoint([bounds.getNorth(), bounds.getEast()]);
    if (event.shiftKey) b = this.L.point(Math.max(a.x + 8, b.x + move.x), Math.max(a.y + 8, b.y + move.y));
    else [a, b] = [a.add(move), b.add(move)];
    this.frame.setBounds(this._bounds(a, b));
    return true;
  }

  finish(bounds) {
    const purpose = this.purpose;
    const box = { x0: bounds.getWest(), y0: bounds.getSouth(), x1: bounds.getEast(), y1: bounds.getNorth() };
    this.stop();
    if (box.x1 > box.x0 && box.y1 > box.y0) this.done(purpose, box);
  }

  stop() {
    const was = this.purpose;
    this.purpose = null;
    this.map.off("mousedown", this._byMouse, this);
    if (this.handler) this.handler.disable();
    if (this.frame) this.frame.remove();
    this.handler = this.frame = null;
    if (was) this.ended(was);
  }
}
