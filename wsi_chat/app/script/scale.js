// Lengths on the slide: a scale bar in µm or mm, and the magnification that a zoom stands for.

const FULL = 10; // um/px on the screen at 1x: a 10x objective shows 1 um in one pixel, as scanners count

export function scaleBar(L, mpp) {
  return L.Control.Scale.extend({
    options: { position: "bottomleft", maxWidth: 140, metric: true, imperial: false },
    _updateMetric(pixels) {
      // the map's distances are level-0 pixels
      const round = this._getRoundNum(pixels * (mpp || 1));
      const unit = !mpp ? "px" : round >= 1000 ? "mm" : "µm";
      const shown = unit === "mm" ? round / 1000 : round;
      this._updateScale(this._mScale, `${shown} ${unit}`, round / (pixels * (mpp || 1)));
    },
  });
}

export const zoomFor = (magnification, mpp) => Math.log2((mpp * magnification) / FULL);
export const magnificationAt = (zoom, mpp) => (FULL * 2 ** zoom) / mpp;
