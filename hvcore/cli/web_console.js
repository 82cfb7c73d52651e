// The page of "hv console --web": gives its one-time ticket for an address and a password, and hands both to noVNC.
import RFB from "/novnc/core/rfb.js";

function say(state, text) {
    document.body.dataset.state = state;
    document.getElementById("state").textContent = text;
}

// Behind the "#" of the address, so that it is in no request line and no log; then out of the history, too.
const ticket = location.hash.slice(1);
history.replaceState(null, "", "/");

const answer = await fetch("/ticket", { method: "POST", body: ticket });
if (!answer.ok) {
    say("refused", await answer.text());
} else {
    const where = await answer.json();
    document.title = where.title;
    const rfb = new RFB(document.getElementById("screen"), where.url, { credentials: { password: where.password } });
    rfb.scaleViewport = true;
    rfb.addEventListener("connect", () => say("connected", where.title));
    rfb.addEventListener("securityfailure", (event) => say("failed", `Not let in: ${event.detail.reason || "no reason given"}`));
    rfb.addEventListener("disconnect", (event) => {
        if (document.body.dataset.state !== "failed") {
            say("ended", event.detail.clean ? "The console has closed." : "The connection was lost, or could not be made.");
        }
    });
}
