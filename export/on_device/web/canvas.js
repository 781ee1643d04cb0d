// What the scene and the charts share: a canvas in the resolution of the screen, and the colours of style.css.

/** Returns the context of a canvas, cleared, with its width and height in pixels of the style sheet. */
export function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Returns the colours by their names in style.css, in the light or the dark form that is in use. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["text", "quiet", "line", "accent", "body", "pole"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
}
