// How elements are made and numbers written. Text of models reaches the page through textContent alone.
"use strict";

const $ = (id) => document.getElementById(id);

/** An element with attributes, listeners (names that begin with "on") and children: elements, texts, or null. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "className") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Put the children in place of all that is in an element. */
function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

/** A number in few digits: 1,234 · 0.012 · 3.2e-6; a dash where there is none. */
function short(number, digits = 3) {
  if (number === null || number === undefined) return "–";
  if (Number.isInteger(number) && Math.abs(number) < 1e7) return number.toLocaleString("en");
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return minus(number.toExponential(1));
  if (size >= 1000) return Math.round(number).toLocaleString("en");
  return minus(String(Number(number.toPrecision(digits))));
}

const minus = (text) => text.replaceAll("-", "−");

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A text whose control characters, those of text direction among them, are seen instead of obeyed. */
function visible(text) {
  return text.replace(HIDDEN, (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"));
}

/** A table of rows of cells; the first row is the head. */
function table(head, rows, attributes = {}) {
  return make("table", attributes,
    make("thead", {}, make("tr", {}, head.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell, column) =>
      column === 0 ? make("th", { scope: "row" }, cell) : make("td", {}, cell))))));
}

const note = (text) => make("p", { className: "note" }, text);
const lastOf = (list) => list[list.length - 1];
