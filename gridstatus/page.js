"use strict";
(() => {
	const every = Number(document.body.dataset.every);
	// Options.Timeout is 10 s at the most.
	const patience = every + 20000;

	// update makes a like b, which was just loaded, and changes only what differs: so
	// focus, selection and scrolling stay where they are.
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
		updateChildren(a, b);
	}

	function updateChildren(a, b) {
		if (b.firstElementChild?.dataset.key) return updateRows(a, b);
		const old = [...a.childNodes];
		const now = [...b.childNodes];
		for (let i = 0; i < now.length; i++) {
			if (i < old.length) update(old[i], now[i]);
			else a.append(document.importNode(now[i], true));
		}
		for (const gone of old.slice(now.length)) gone.remove();
	}

	// updateRows leaves a row that of its host when others come or go.
	function updateRows(a, b) {
		const keys = new Set([...b.children].map(row => row.dataset.key));
		for (const row of [...a.children]) {
			if (!keys.has(row.dataset.key)) row.remove();
		}
		const rows = new Map([...a.children].map(row => [row.dataset.key, row]));
		let next = a.firstElementChild;
		for (const now of b.children) {
			const row = rows.get(now.dataset.key) ?? document.importNode(now, true);
			if (row === next) next = row.nextElementSibling;
			else a.insertBefore(row, next);
			update(row, now);
		}
	}

	// load returns the page as it is now, or throws what to tell the reader.
	async function load() {
		let answer;
		try {
			answer = await fetch(location.href, {headers: {Accept: "text/html"}, signal: AbortSignal.timeout(patience)});
		} catch {
			throw "This host does not answer";
		}
		if (!answer.ok) throw "This host has answered with " + answer.status + " " + answer.statusText;
		const page = new DOMParser().parseFromString(await answer.text(), "text/html");
		if (!page.getElementById("gridstatus")) throw "Another page has come: load this one again, perhaps to sign in";
		return page;
	}

	// tell has a screen reader say how it is, when that has changed, and not too often.
	let toldAt = -Infinity;
	function tell(text) {
		const said = document.getElementById("said");
		if (said.textContent === text || performance.now() - toldAt < 5 * every) return;
		toldAt = performance.now();
		said.textContent = text;
	}

	const main = document.getElementById("gridstatus");
	const summary = document.getElementById("summary");
	let since = null; // when the page became old
	async function refresh() {
		try {
			const page = await load();
			if (page.body.dataset.version !== document.body.dataset.version) location.reload();
			since = null;
			document.body.classList.remove("stale");
			document.title = page.title;
			update(main, page.getElementById("gridstatus"));
			hint();
		} catch (why) {
			since ??= new Date().toLocaleTimeString();
			document.body.classList.add("stale");
			summary.textContent = document.title = why + ". What is below is older than " + since + ".";
			summary.className = "down";
		}
		tell(summary.textContent);
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

	// A cell of the matrix in words, for those who see it as a dot.
	let cell = null;
	function hint() {
		if (!cell?.isConnected || !cell.hasAttribute("aria-label")) return;
		const from = cell.parentElement.querySelector("a").textContent;
		const to = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].getAttribute("aria-label");
		document.getElementById("hint").textContent = from + " to " + to + ": " + cell.getAttribute("aria-label");
	}
	for (const event of ["mouseover", "click"]) {
		document.addEventListener(event, ({target}) => {
			cell = target.closest(".matrix td[aria-label]") ?? cell;
			hint();
		});
	}

	tell(summary.textContent);
	run();
})();
