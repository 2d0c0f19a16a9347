'use strict'
// The process `pinfold serve --stdio`, which all commands of this program share. docs/serve.md describes its protocol.

const { spawn } = require('node:child_process')
const { StringDecoder } = require('node:string_decoder')
const { PinfoldError } = require('./errors')

const PROTOCOL = 1
const NEEDED = ['cancel_kill', 'close', 'credit', 'error_code', 'job_settings', 'output', 'pty', 'signal_to', 'stdin']

/** One `pinfold serve`. It keeps this program alive only while jobs run. */
class Serve {
  constructor (program, controllers) {
    this.lost = null
    this.hello = null
    this.lines = 0
    this.jobs = new Map()
    this.waiting = new Map()
    this.nextId = 1
    const words = ['serve', '--stdio', '-j', 'max']
    if (controllers.length > 0) words.push('--controllers', controllers.join(','))
    // Its standard error is that of this program: pinfold reports there what it cannot report in an event.
    this.process = spawn(program, words, { stdio: ['pipe', 'pipe', 'inherit'] })
    this.process.on('error', error => this.lose(error))
    this.process.on('close', (code, signal) => {
      this.lose(new Error(`it ended with ${signal ?? `exit code ${code}`}`))
    })
    this.process.stdin.on('error', () => {}) // `close` follows.
    const decoder = new StringDecoder('utf8')
    let rest = ''
    this.process.stdout.on('data', bytes => {
      const lines = (rest + decoder.write(bytes)).split('\n')
      rest = lines.pop()
      for (const line of lines) this.receive(JSON.parse(line))
    })
    this.keepAlive()
  }

  /** Sends a request, and returns its number. `answer` receives the event that answers it. */
  send (request, answer) {
    this.lines += 1
    if (answer) this.waiting.set(this.lines, answer)
    if (module.exports.onMessage) module.exports.onMessage(request)
    this.process.stdin.write(JSON.stringify(request) + '\n')
    return this.lines
  }

  /** Submits a job. `job.receive` gets its events, and `job.lose` the error when pinfold itself ends. */
  submit (request, job) {
    const id = String(this.nextId++)
    this.jobs.set(id, job)
    this.keepAlive()
    this.send({ op: 'submit', id, ...request }, event => {
      if (event.event === 'error' && event.code === 'stopping') forget(this)
      this.jobs.delete(id)
      this.keepAlive()
      job.receive(event)
    })
    return id
  }

  receive (event) {
    if (module.exports.onMessage) module.exports.onMessage(event)
    if (event.event === 'hello') return this.greet(event)
    const answer = event.request === undefined ? undefined : this.waiting.get(event.request)
    if (answer) {
      this.waiting.delete(event.request)
      return answer(event)
    }
    // An error for a request that expects no answer, such as a signal to a job that is over, is ignored.
    if (event.event !== 'error') this.jobs.get(event.id)?.receive(event)
  }

  greet (hello) {
    this.hello = hello
    const missing = NEEDED.filter(name => !(hello.capabilities ?? []).includes(name))
    if (hello.protocol !== PROTOCOL || missing.length > 0) {
      this.lose(new Error(`pinfold ${hello.version} is too old or too new for this package (protocol ${hello.protocol}` +
        `${missing.length > 0 ? `, without ${missing.join(', ')}` : ''})`))
      this.process.kill()
    }
  }

  /** Handles the end of pinfold, with which every job has ended. */
  lose (cause) {
    if (this.lost) return
    this.lost = new PinfoldError(`pinfold serve is not available: ${cause.message}`, 'ERR_PINFOLD_LOST', cause)
    forget(this)
    const jobs = [...this.jobs.values()]
    this.jobs.clear()
    this.waiting.clear()
    this.keepAlive()
    for (const job of jobs) job.lose(this.lost)
  }

  keepAlive () {
    const how = this.jobs.size > 0 ? 'ref' : 'unref'
    for (const handle of [this.process, this.process.stdin, this.process.stdout]) handle?.[how]?.()
  }
}

const running = new Map()

function forget (serve) {
  for (const [key, known] of running) if (known === serve) running.delete(key)
}

/** Returns the shared `pinfold serve`, and starts it if it does not run. One process serves one set of controllers. */
function shared (limits) {
  const program = process.env.PINFOLD || 'pinfold'
  const controllers = controllersOf(limits)
  const key = JSON.stringify([program, controllers])
  let serve = running.get(key)
  if (!serve) {
    serve = new Serve(program, controllers)
    running.set(key, serve)
  }
  return serve
}

/** The cgroup controllers that limits need: pinfold enables them when it starts. */
function controllersOf (limits = {}) {
  const controller = name => {
    if (['memory', 'memory_high', 'swap', 'oom_group'].includes(name)) return 'memory'
    if (['cpus', 'cpu_weight'].includes(name)) return 'cpu'
    if (['io_weight', 'io_max'].includes(name)) return 'io'
    return ['pids', 'cpuset'].includes(name) ? name : null
  }
  return [...new Set(Object.keys(limits).map(controller).filter(Boolean))].sort()
}

module.exports = { shared, onMessage: null }
