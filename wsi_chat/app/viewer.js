import { leaflet as L } from "nicegui-leaflet";
import { findingsLayer } from "wsi-chat-page/findings.js";
import { Drawing } from "wsi-chat-page/draw.js";
import { scaleBar, zoomFor, magnificationAt } from "wsi-chat-page/scale.js";

// The slide: Leaflet in level-0 pixels, y downward; latitude is y and longitude x.

const loading = {};
function load(url) {
  loading[url] ??= new Promise((resolve, reject) => {
    const css = url.endsWith(".css");
    const element = document.createElement(css ? "link" : "script");
    Object.assign(element, css ? { rel: "stylesheet", href: url } : { src: url });
    element.onload = resolve;
    element.onerror = () => reject(new Error(url));
    document.head.appendChild(element);
  });
  return loading[url];
}

// keys that the server acts on; the others are done here
const COMMANDS = {
  n: "next", j: "next", p: "previous", k: "previous", a: "accept", r: "reject", l: "relabel", u: "undo",
  c: "complete", h: "heat", m: "mask", g: "glass", b: "boxes", "/": "ask", "?": "help",
};
const FIELDS = ["INPUT", "TEXTAREA", "SELECT"];

export default {
  template: `
    <div class="wsi-viewer">
      <div ref="map" class="wsi-map" role="application" :aria-label="words.map" data-testid="map"></div>
      <div v-show="state === 'ready' && slide.overview" ref="overview" class="wsi-overview" data-testid="overview"
        :title="words.overview" @pointerdown.stop.prevent="jump" @pointermove="drag">
        <img v-if="slide.overview" :src="slide.overview" alt="" draggable="false" @load="map && place()">
        <div ref="window" class="wsi-window"></div>
      </div>
      <div v-if="state === 'ready'" class="wsi-tools" role="toolbar" :aria-label="words.tools">
        <button type="button" @click="zoomBy(1)" :title="words.closer + ' (+)'" :aria-label="words.closer">+</button>
        <button type="button" @click="zoomBy(-1)" :title="words.farther + ' (−)'" :aria-label="words.farther">−</button>
        <button type="button" @click="whole" :title="words.whole + ' (0)'" :aria-label="words.whole">⤢</button>
        <template v-if="slide.mpp">
          <button v-for="[key, m] in powers" :key="m" type="button" @click="magnify(m)" :class="{on: isAt(m)}"
            :title="m + '× (' + key + ')'" :aria-pressed="isAt(m)">{{ m }}×</button>
        </template>
      </div>
      <div v-if="slide.planes > 1 && state === 'ready'" class="wsi-planes">
        <label>{{ words.plane }} {{ plane < 0 ? words.sharpest : (plane + 1) + "/" + slide.planes }}
          <input type="range" min="-1" :max="slide.planes - 1" v-model.number="plane" @change="setPlane"
            data-testid="plane"></label>
      </div>
      <div v-if="state === 'ready'" class="wsi-status" data-testid="status">
        <span class="where">{{ where }}</span><span class="power">{{ power }}</span>
      </div>
      <div v-if="drawing" class="wsi-hint" role="status">{{ words.draw_hint }}</div>
      <div v-if="state !== 'ready'" class="wsi-state" :role="state === 'failed' ? 'alert' : 'status'">
        <div v-if="state === 'loading'" class="wsi-pulse"></div>
        <p>{{ state === 'loading' ? words.loading : trouble }}</p>
      </div>
      <div v-if="broken && state === 'ready'" class="wsi-broken" role="alert">{{ words.broken }} ({{ broken }})</div>
    </div>`,
  props: {
    slide: Object, findings: Array, chosen: String, threshold: Number, hidden: Array, layers: Object, words: Object,
    resourcePath: String, region: Object,
  },
  emits: ["ready", "choose", "view", "drawn", "command", "drawing"],
  data() {
    this.rows = this.findings || []; // what is drawn: the property, or as it was amended since
    this.map = null; // Leaflet's own objects are no state of Vue's: they are set on the instance, not watched
    return { state: "loading", trouble: "", where: "", power: "", plane: -1, drawing: false, zoom: 0, broken: 0,
      // as the props were, or as the page changed it since without sending all findings again
      now: { chosen: this.chosen, threshold: this.threshold, hidden: this.hidden, layers: this.layers, region: this.region },
    };
  },
  computed: {
    powers() {
      const finest = this.slide.mpp ? 10 / this.slide.mpp : 0;
      return [["1", 10], ["2", 20], ["4", 40]].filter(([, m]) => m <= finest * 4);
    },
  },
  watch: {
    findings(rows) { this.rows = rows; this.redraw(); },
    chosen(value) { this.change("chosen", value); },
    threshold(value) { this.change("threshold", value); },
    hidden(value) { this.change("hidden", value); },
    layers(value) { this.change("layers", value); },
    region(value) { this.change("region", value); },
    // another field of the specimen, or another slide
    "slide.key"() { this.teardown(); this.build(); },
  },
  async mounted() {
    this.$emit("ready", {
      reviewer: localStorage.getItem("wsi-chat-reviewer") || "",
      width: window.innerWidth,
    });
    await this.$nextTick();
    const base = (window.path_prefix || "") + this.resourcePath;
    try {
      await load(`${base}/leaflet/leaflet.css`);
      window.L = L;
      // the plugin's own bug: its readable area is read before it is written
      window.type = window.type || "";
      await load(`${base}/leaflet-draw/leaflet.draw.css`);
      await load(`${base}/leaflet-draw/leaflet.draw.js`);
    } catch (error) {
      this.trouble = String(error);
      this.state = "failed";
      return;
    }
    this.onKey = (event) => this.key(event);
    document.addEventListener("keydown", this.onKey, true);
    this.build();
  },
  unmounted() {
    document.removeEventListener("keydown", this.onKey, true);
    this.teardown();
  },
  methods: {
    build() {
      const slide = this.slide;
      if (!slide.squares && !slide.picture) {
        this.trouble = slide.trouble || this.words.nothing;
        this.state = "failed";
        return;
      }
      const crs = L.extend({}, L.CRS.Simple, {
        transformation: new L.Transformation(1, 0, 1, 0),
        distance: (a, b) => Math.hypot(a.lng - b.lng, a.lat - b.lat),
      });
      const bounds = L.latLngBounds([0, 0], [slide.height, slide.width]);
      this.map = L.map(this.$refs.map, {
        crs, zoomSnap: 0, zoomDelta: 1, wheelPxPerZoomLevel: 90, wheelDebounceTime: 20, minZoom: -slide.depth - 1.5,
        maxZoom: 3, attributionControl: false, zoomControl: false, maxBounds: bounds.pad(0.6),
        maxBoundsViscosity: 0.6, keyboardPanDelta: 160, doubleClickZoom: true,
      });
      if (slide.squares) this.squares(bounds);
      else L.imageOverlay(slide.picture, bounds).addTo(this.map);
      this.overlays = {};
      this.boxes = new (findingsLayer(L))().addTo(this.map);
      new (scaleBar(L, slide.mpp))().addTo(this.map);
      this.pen = new Drawing(
        L, this.map,
        (purpose, box) => this.$emit("drawn", { purpose, box: this.clipped(box) }),
        () => { this.drawing = false; this.$emit("drawing", { on: false }); },
      );
      this.map.on("click", (event) => {
        if (this.drawing) return;
        const found = this.boxes.at(event.containerPoint);
        if (found) this.$emit("choose", { id: found.id });
      });
      this.map.on("mousemove", (event) => this.hover(event));
      this.map.on("move zoom", () => this.moved());
      this.map.on("moveend zoomend", () => this.settled());
      this.state = "ready";
      this.$nextTick(() => {
        this.map.invalidateSize();
        this.map.fitBounds(bounds, { animate: false });
        this.lay();
        this.redraw();
        this.frame();
        this.moved();
      });
      let sized = this.$refs.map.clientWidth > 0;
      this.watching = new ResizeObserver(() => {
        if (!this.map) return;
        this.map.invalidateSize({ animate: false });
        if (!sized && this.$refs.map.clientWidth > 0) {
          sized = true; // it was built unseen
          this.map.fitBounds(bounds, { animate: false });
        }
      });
      this.watching.observe(this.$refs.map);
      this.$el.wsiMap = this.map;
    },
    teardown() {
      if (this.watching) this.watching.disconnect();
      if (this.map) this.map.remove();
      this.map = null;
    },
    squares(bounds) {
      // on a fine screen one square covers half as many CSS pixels, so that a slide pixel is a screen pixel
      const fine = (window.devicePixelRatio || 1) > 1.4 ? 1 : 0;
      const view = this;
      const Squares = L.TileLayer.extend({
        getTileUrl(at) {
          const z = -this._getZoomForUrl();
          const plane = view.plane >= 0 ? `?plane=${view.plane}` : "";
          return `${view.slide.squares}/${z}/${at.x}_${at.y}.jpg${plane}`;
        },
        createTile(at, done) {
          // the last squares reach beyond the slide: what is not slide is not shown
          const image = L.TileLayer.prototype.createTile.call(this, at, done);
          const side = 256 * 2 ** -this._getZoomForUrl();
          const beyond = (n, most) => Math.min(100, Math.max(0, 100 * ((n + 1) - most / side)));
          const right = beyond(at.x, view.slide.width), low = beyond(at.y, view.slide.height);
          if (right || low) image.style.clipPath = `inset(0 ${right}% ${low}% 0)`;
          return image;
        },
      });
      this.base = new Squares("", {
        tileSize: 256 >> fine, zoomOffset: fine, minNativeZoom: -this.slide.depth, maxNativeZoom: -fine,
        minZoom: -this.slide.depth - 1.5, maxZoom: 3, bounds, noWrap: true, keepBuffer: 3, updateWhenZooming: false,
        className: "wsi-square",
      }).addTo(this.map);
      this.base.on("tileerror", () => { this.broken += 1; });
    },
    amend(rows) {
      const by = new Map(rows.map((row) => [row.id, row]));
      this.rows = this.rows.map((row) => by.get(row.id) || row);
      this.redraw();
    },
    change(name, value) {
      this.now[name] = value;
      if (name === "layers") this.lay();
      else if (name === "region") this.frame();
      else this.redraw();
    },
    // ------------------------------------------------------------------------------------------ what lies over it
    lay() {
      if (!this.map) return;
      for (const name of ["glass", "mask", "heat"]) {
        const layer = (this.now.layers || {})[name];
        let shown = this.overlays[name];
        if (!layer || !layer.on) {
          if (shown) shown.remove();
          delete this.overlays[name];
          continue;
        }
        if (!shown) {
          const [x0, y0, x1, y1] = layer.extent;
          shown = L.imageOverlay(layer.url, [[y0, x0], [y1, x1]], { className: "wsi-layer", interactive: false });
          this.overlays[name] = shown.addTo(this.map);
        }
        shown.setOpacity(layer.opacity);
      }
      const rings = ((this.now.layers || {}).mask || {}).on ? this.now.layers.mask.outline || [] : [];
      if (this.outline) this.outline.remove();
      this.outline = rings.length
        ? L.polyline(rings.map((ring) => ring.map(([x, y]) => [y, x])), {
            color: "#222", weight: 1.5, dashArray: "2 4", interactive: false,
          }).addTo(this.map)
        : null;
      this.redraw();
    },
    redraw() {
      if (!this.boxes || !this.map) return;
      const on = !this.now.layers || this.now.layers.boxes !== false;
      const hidden = new Set(this.now.hidden || []);
      const shown = this.rows.filter(
        (f) => f.id === this.now.chosen ||
          (on && !hidden.has(f.label) && (f.score === null || f.score === undefined || f.score >= this.now.threshold)),
      );
      this.boxes.show(shown, this.now.chosen);
    },
    frame() {
      if (this.marked) this.marked.remove();
      this.marked = null;
      if (!this.map || !this.now.region) return;
      const { x0, y0, x1, y1 } = this.now.region;
      this.marked = L.rectangle([[y0, x0], [y1, x1]], {
        color: "#0b63ce", weight: 2, dashArray: "6 4", fill: false, interactive: false,
      }).addTo(this.map);
    },
    // ------------------------------------------------------------------------------------------ moving
    fly(box, margin = 2.5) {
      if (!this.map) return;
      const cx = (box.x0 + box.x1) / 2, cy = (box.y0 + box.y1) / 2;
      const half = (Math.max(box.x1 - box.x0, box.y1 - box.y0, 24) * margin);
      const bounds = [[cy - half, cx - half], [cy + half, cx + half]];
      const zoom = Math.min(this.map.getBoundsZoom(bounds), 1);
      const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      if (still) this.map.setView([cy, cx], zoom, { animate: false });
      else this.map.flyTo([cy, cx], zoom, { duration: 0.6 });
    },
    whole() { this.map.fitBounds([[0, 0], [this.slide.height, this.slide.width]]); },
    zoomBy(steps) { this.map.setZoom(this.map.getZoom() + steps); },
    magnify(power) { if (this.slide.mpp) this.map.setZoom(zoomFor(power, this.slide.mpp)); },
    isAt(power) { return !!this.slide.mpp && Math.abs(this.zoom - zoomFor(power, this.slide.mpp)) < 0.02; },
    setPlane() { if (this.base) this.base.redraw(); },
    moved() {
      this.zoom = this.map.getZoom();
      if (this.slide.mpp) {
        const power = magnificationAt(this.zoom, this.slide.mpp);
        this.power = `${power >= 9.95 ? power.toFixed(0) : power.toPrecision(2)}×`;
      } else {
        this.power = `${(100 * 2 ** this.zoom).toPrecision(2)} %`;
      }
      this.place();
    },
    place() {
      const view = this.map.getBounds(), frame = this.$refs.overview, mark = this.$refs.window;
      if (!frame || !mark) return;
      const fx = frame.clientWidth / this.slide.width, fy = frame.clientHeight / this.slide.height;
      const x0 = Math.max(0, view.getWest()), x1 = Math.min(this.slide.width, view.getEast());
      const y0 = Math.max(0, view.getSouth()), y1 = Math.min(this.slide.height, view.getNorth());
      Object.assign(mark.style, {
        left: `${x0 * fx}px`, top: `${y0 * fy}px`,
        width: `${Math.max(4, (x1 - x0) * fx)}px`, height: `${Math.max(4, (y1 - y0) * fy)}px`,
      });
    },
    settled() {
      clearTimeout(this.telling);
      this.telling = setTimeout(() => this.map && this.$emit("view", this.view()), 150);
    },
    view() {
      const seen = this.map.getBounds();
      return {
        ...this.clipped({ x0: seen.getWest(), y0: seen.getSouth(), x1: seen.getEast(), y1: seen.getNorth() }),
        zoom: this.map.getZoom(),
      };
    },
    clipped(box) {
      const inside = (v, most) => Math.min(Math.max(v, 0), most);
      return {
        x0: inside(box.x0, this.slide.width), y0: inside(box.y0, this.slide.height),
        x1: inside(box.x1, this.slide.width), y1: inside(box.y1, this.slide.height),
      };
    },
    hover(event) {
      const { lat, lng } = event.latlng;
      const scale = this.slide.mpp, unit = scale ? "µm" : "px";
      const at = (v) => (scale ? (v * scale).toFixed(1) : v.toFixed(0));
      this.where = `x ${at(lng)}  y ${at(lat)} ${unit}`;
      const found = !this.drawing && this.boxes.at(event.containerPoint);
      this.$refs.map.classList.toggle("over", !!found);
      // a property, so that a name is text whatever it holds
      this.$refs.map.title = found ? `${found.id} ${found.name}` : "";
    },
    jump(event) {
      const rect = this.$refs.overview.getBoundingClientRect();
      const x = ((event.clientX - rect.left) / rect.width) * this.slide.width;
      const y = ((event.clientY - rect.top) / rect.height) * this.slide.height;
      this.map.panTo([y, x], { animate: event.type === "pointerdown" });
    },
    drag(event) { if (event.buttons) this.jump(event); },
    // ------------------------------------------------------------------------------------------ drawing and keys
    draw(purpose) {
      if (!this.pen) return;
      this.pen.start(purpose);
      this.drawing = true;
      this.$refs.map.focus({ preventScroll: true });
      this.$emit("drawing", { on: true, purpose });
    },
    remember(name, value) { localStorage.setItem(name, value); },
    key(event) {
      if (!this.map || event.ctrlKey && event.key !== "z" || event.altKey || event.metaKey) return;
      if (this.pen.key(event)) {
        event.preventDefault();
        event.stopPropagation();
        return;
      }
      const focus = document.activeElement;
      const typing = focus && (FIELDS.includes(focus.tagName) && focus.type !== "range" && focus.type !== "checkbox"
        || focus.isContentEditable);
      if (typing || document.querySelector(".q-dialog")) return;
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const here = {
        "+": () => this.zoomBy(1), "=": () => this.zoomBy(1), "-": () => this.zoomBy(-1), 0: () => this.whole(),
        1: () => this.magnify(10), 2: () => this.magnify(20), 4: () => this.magnify(40),
        d: () => this.draw("cell"), q: () => this.draw("ask"),
        "[": () => this.step(-1), "]": () => this.step(1),
      }[key];
      if (here && !event.ctrlKey) here();
      else if (event.ctrlKey ? key === "z" : COMMANDS[key]) {
        this.$emit("command", { name: event.ctrlKey ? "undo" : COMMANDS[key] });
      } else return;
      event.preventDefault();
      event.stopPropagation();
    },
    step(by) {
      if (this.slide.planes < 2) return;
      this.plane = Math.min(Math.max(this.plane + by, -1), this.slide.planes - 1);
      this.setPlane();
    },
  },
};
