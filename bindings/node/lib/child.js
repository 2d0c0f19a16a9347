'use strict'
// One command, with the interface of child_process.ChildProcess.

const { EventEmitter } = require('node:events')
const { Readable, Writable } = require('node:stream')
const os = require('node:os')
const { PinfoldError } = require('./errors')
const { shared } = require('./serve')

/** How many bytes of each output pinfold sends before the program reads them. */
const CREDIT = 256 * 1024
/** The largest piece of a standard input in one message. */
const PIECE = 256 * 1024

class ChildProcess extends EventEmitter {
  #serve
  #id
  #over = false
  #exited = false

  /** `request` is the `submit` request without its id; `wants` says which streams the caller reads. */
  constructor (request, wants) {
    super()
    this.pid = undefined
    this.exitCode = null
    this.signalCode = null
    this.killed = false
    this.report = null
    this.spawnfile = request.job.command[0]
    this.spawnargs = request.job.command
    this.#serve = shared(request.job.limits)
    this.stdin = request.stdin === 'stream' ? this.#writable() : null
    this.stdout = wants.stdout ? this.#readable('stdout') : null
    this.stderr = wants.stderr ? this.#readable('stderr') : null
    this.stdio = [this.stdin, this.stdout, this.stderr]
    this.#id = this.#serve.submit(request, this)
  }

  #send (request, answer) {
    if (!this.#over && !this.#serve.lost) this.#serve.send({ id: this.#id, ...request }, answer)
  }

  #readable (name) {
    let owed = 0
    const stream = new Readable({
      highWaterMark: 64 * 1024,
      read: () => {
        if (owed > 0) this.#send({ op: 'credit', stream: name, bytes: owed })
        owed = 0
      },
      destroy: (error, callback) => {
        // The next write of the command fails, as with a closed pipe.
        this.#send({ op: 'close', stream: name })
        callback(error)
      }
    })
    stream.receive = bytes => {
      owed += bytes.length
      if (stream.push(bytes) && owed > 0) {
        this.#send({ op: 'credit', stream: name, bytes: owed })
        owed = 0
      }
    }
    return stream
  }

  #writable () {
    const write = (bytes, callback) => {
      const piece = bytes.subarray(0, PIECE)
      const rest = bytes.subarray(PIECE)
      if (this.#over || this.#serve.lost) return callback(brokenPipe())
      this.#send({ op: 'stdin', base64: piece.toString('base64') }, event => {
        if (event.event === 'error') callback(brokenPipe(event.message))
        else if (rest.length > 0) write(rest, callback)
        else callback()
      })
    }
    const stream = new Writable({
      highWaterMark: 64 * 1024,
      write: (chunk, encoding, callback) => write(chunk, callback),
      writev: (chunks, callback) => write(Buffer.concat(chunks.map(({ chunk }) => chunk)), callback),
      final: callback => {
        this.#send({ op: 'close', stream: 'stdin' })
        callback()
      },
      destroy: (error, callback) => {
        this.#send({ op: 'close', stream: 'stdin' })
        callback(error)
      }
    })
    return stream
  }

  /** Handles an event of the job. */
  receive (event) {
    switch (event.event) {
      case 'job':
        return this.#happened(event.what)
      case 'data':
        return this[event.stream]?.receive(event.base64 ? Buffer.from(event.base64, 'base64') : Buffer.from(event.text))
      case 'eof':
        return this[event.stream]?.push(null)
      case 'done':
        this.report = event.report
        this.cancelled = event.cancelled
        if (event.report.reason === 'spawn_failed') return this.#fail(spawnError(event.report, this.spawnargs))
        return this.#close(event.report.main)
      case 'error':
        return this.#fail(new PinfoldError(event.message, `ERR_PINFOLD_${event.code.toUpperCase()}`))
    }
  }

  /** Handles the end of pinfold. */
  lose (error) {
    this.#fail(error)
  }

  #happened (what) {
    if (what.event === 'spawned') {
      this.pid = what.pid
      this.emit('spawn')
    } else if (what.event === 'main_exited') {
      this.#exit(what.end)
    }
  }

  #exit (end) {
    if (this.#exited) return
    this.#exited = true
    if (end?.signalled) this.signalCode = end.signalled.name
    else this.exitCode = end?.exited ?? null
    this.emit('exit', this.exitCode, this.signalCode)
    // As child_process does: a stream that the program does not read must not delay `close`.
    process.nextTick(() => {
      for (const stream of [this.stdout, this.stderr]) {
        if (stream?.readableFlowing === null && stream.listenerCount('readable') === 0) stream.resume()
      }
    })
  }

  #fail (error) {
    this.#over = true
    this.stdin?.destroy()
    this.stdout?.push(null)
    this.stderr?.push(null)
    this.emit('error', error)
    this.emit('close', this.exitCode, this.signalCode)
  }

  #close (end) {
    this.#over = true
    this.stdin?.destroy()
    this.#exit(end)
    const open = [this.stdout, this.stderr].filter(stream => stream && !stream.readableEnded && !stream.destroyed)
    let left = open.length
    const closed = () => this.emit('close', this.exitCode, this.signalCode)
    if (left === 0) return closed()
    for (const stream of open) stream.once('close', () => --left === 0 && closed())
  }

  /**
   * Sends a signal to the main process. SIGKILL kills every process of the command at once. Returns whether the command
   * was running.
   */
  kill (signal = 'SIGTERM') {
    if (this.#over || this.#exited || this.#serve.lost) return false
    if (signal === 'SIGKILL' || signal === os.constants.signals.SIGKILL) this.#send({ op: 'cancel', kill: true })
    else if (signal !== 0) this.#send({ op: 'signal', signal: String(signal) })
    this.killed = true
    return true
  }

  /** Stops every process of the command: the stop signal, then the grace period, then SIGKILL. A second call kills. */
  cancel () {
    this.#send({ op: 'cancel' })
  }

  /** Changes the size of the command's terminal (option `pty`). */
  resize (rows, columns) {
    this.#send({ op: 'resize', rows, columns })
  }

  get [Symbol.toStringTag] () {
    return 'ChildProcess'
  }
}

function brokenPipe (message = 'the command does not read its standard input any more') {
  return Object.assign(new Error(`write EPIPE: ${message}`), { code: 'EPIPE', syscall: 'write' })
}

/** Returns the error that child_process reports for a command that could not be started. */
function spawnError (report, [path, ...args]) {
  const code = { 126: 'EACCES', 127: 'ENOENT' }[report.exit_code] ?? 'ERR_PINFOLD_SPAWN'
  return Object.assign(new PinfoldError(report.error, code), { syscall: `spawn ${path}`, path, spawnargs: args })
}

module.exports = { ChildProcess }
