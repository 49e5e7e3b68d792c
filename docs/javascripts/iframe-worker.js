// Search when the site is opened from disk: browsers start no Worker from a file, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) =>
        urls.reduce((before, each) => before.then(() => this.load(each)), Promise.resolve())
      this.load(url).then(() => {
        for (const data of this.waiting.splice(0)) this.hand(data)
        this.loaded = true
      })
    }

    load(url) {
      return new Promise((loaded, failed) => {
        const page = this.frame.contentDocument
        const script = page.createElement("script")
        script.src = new URL(url, document.baseURI).href
        script.onload = loaded
        script.onerror = failed
        page.body.append(script)
      })
    }

    hand(data) {
      const inside = this.frame.contentWindow
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }

    postMessage(data) {
      if (this.loaded) this.hand(data)
      else this.waiting.push(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
}
