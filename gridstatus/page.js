"use strict";
(() => {
	const every = Number(document.body.dataset.every);

	// update makes a like b, which was just loaded, and changes only what differs: so
	// focus, selection and scrolling stay, and a screen reader hears of changes only.
	function update(a, b) {
		if (a.nodeType !== b.nodeType || a.nodeName !== b.nodeName) {
			a.replaceWith(document.importNode(b, true));
			return;
		}
		if (a.nodeType === Node.TEXT_NODE) {
			if (a.data !== b.data) a.data = b.data;
			return;
		}
		if (a.nodeType !== Node.ELEMENT_NODE || "keep" in a.dataset) return;
		for (const {name, value} of b.attributes) {
			if (a.getAttribute(name) !== value) a.setAttribute(name, value);
		}
		for (const {name} of [...a.attributes]) {
			if (!b.hasAttribute(name)) a.removeAttribute(name);
		}
		const old = [...a.childNodes];
		const now = [...b.childNodes];
		for (let i = 0; i < now.length; i++) {
			if (i < old.length) update(old[i], now[i]);
			else a.append(document.importNode(now[i], true));
		}
		for (const gone of old.slice(now.length)) gone.remove();
	}

	async function load() {
		const stop = new AbortController();
		const timer = setTimeout(() => stop.abort(), 10000 + every);
		try {
			const answer = await fetch(location.href, {headers: {Accept: "text/html"}, signal: stop.signal});
			if (!answer.ok) throw new Error(answer.statusText);
			return new DOMParser().parseFromString(await answer.text(), "text/html");
		} finally {
			clearTimeout(timer);
		}
	}

	let lost = null; // since when this node does not answer
	async function refresh() {
		try {
			const page = await load();
			const main = page.querySelector("main");
			if (!main) throw new Error("not the page");
			lost = null;
			document.body.classList.remove("stale");
			document.title = page.title;
			update(document.querySelector("main"), main);
		} catch {
			lost ??= new Date().toLocaleTimeString();
			document.body.classList.add("stale");
			const summary = document.getElementById("summary");
			const text = "This host has not answered since " + lost + ". What is below is old.";
			if (summary.textContent !== text) summary.textContent = text;
			summary.className = "down";
			document.title = text;
		}
	}

	function visible() {
		if (!document.hidden) return Promise.resolve();
		return new Promise(done => document.addEventListener("visibilitychange", done, {once: true}));
	}

	async function run() {
		for (;;) {
			await new Promise(done => setTimeout(done, every));
			await visible();
			await refresh();
		}
	}
	run();

	// A cell of the matrix in words, for those who see it as a dot.
	document.addEventListener("mouseover", ({target}) => {
		const cell = target.closest(".matrix td[aria-label]");
		if (!cell) return;
		const from = cell.parentElement.querySelector("a").textContent;
		const to = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].getAttribute("aria-label");
		document.getElementById("hint").textContent = from + " to " + to + ": " + cell.getAttribute("aria-label");
	});
})();
