'use strict'

const { ChildProcess } = require('./child')
const { PinfoldError, CommandError, AbortError } = require('./errors')

/** How many bytes pinfold sends before the program reads them: see child.js. */
const CREDIT = 256 * 1024

/** Returns the `submit` request, and which streams the caller reads. */
function requestOf (command, args, options) {
  const words = options.shell
    ? [typeof options.shell === 'string' ? options.shell : '/bin/sh', '-c', [command, ...args].join(' ')]
    : [command, ...args]
  const environment = options.env ?? process.env
  const job = {
    command: words.map(String),
    cwd: options.cwd instanceof URL ? require('node:url').fileURLToPath(options.cwd) : options.cwd ?? process.cwd(),
    clear_env: true,
    env: Object.fromEntries(Object.entries(environment).filter(([, value]) => value !== undefined)
      .map(([key, value]) => [key, String(value)]))
  }
  const seconds = milliseconds => milliseconds / 1000
  if (options.timeout > 0) job.timeout = seconds(options.timeout)
  if (options.grace !== undefined) job.grace = seconds(options.grace)
  if (options.killSignal !== undefined) job.stop_signal = String(options.killSignal)
  for (const name of ['name', 'limits', 'sandbox', 'user']) if (options[name] !== undefined) job[name] = options[name]
  if (options.merged) job.stderr = 'merged'
  const stdio = typeof options.stdio === 'string' ? Array(3).fill(options.stdio) : options.stdio ?? []
  const [stdin, stdout, stderr] = [0, 1, 2].map(number => stdio[number] ?? 'pipe')
  for (const [name, value, allowed] of [
    ['stdin', stdin, ['pipe', 'ignore']],
    ['stdout', stdout, ['pipe', 'ignore', 'inherit']],
    ['stderr', stderr, ['pipe', 'ignore', 'inherit']]
  ]) {
    if (!allowed.includes(value)) {
      throw new TypeError(`stdio: ${name} can be ${allowed.map(word => `'${word}'`).join(', ')}, not ${String(value)}`)
    }
  }
  const request = { job }
  const reads = value => value !== 'ignore'
  const mode = value => reads(value) || options.pty ? 'data' : 'none'
  request.output = { stdout: mode(stdout), stderr: mode(stderr) }
  request.credit = CREDIT
  if (options.pty) request.pty = { rows: 24, columns: 80, ...(options.pty === true ? {} : options.pty) }
  if (options.input !== undefined && (options.pty || stdin === 'ignore')) {
    throw new TypeError('input needs a standard input that is a pipe')
  }
  if (stdin === 'pipe') request.stdin = 'stream'
  const wants = { stdout: mode(stdout) === 'data', stderr: mode(stderr) === 'data' && !options.pty && !options.merged }
  return { request, wants, stdout, stderr }
}

/**
 * Starts a command, as child_process.spawn does. When the command ends, every process that it started has ended too, and
 * no process of it outlives this program.
 */
function spawn (command, args = [], options = {}) {
  if (!Array.isArray(args)) [args, options] = [[], args]
  const { request, wants, stdout, stderr } = requestOf(command, args, options ?? {})
  const child = new ChildProcess(request, wants)
  if (stdout === 'inherit') child.stdout.pipe(process.stdout, { end: false })
  if (stderr === 'inherit') child.stderr?.pipe(process.stderr, { end: false })
  if (options.input !== undefined) {
    child.stdin.on('error', () => {}) // The command may end without reading all of it.
    child.stdin.end(options.input)
  }
  const { signal } = options
  if (signal) {
    const abort = () => child.cancel()
    if (signal.aborted) abort()
    else signal.addEventListener('abort', abort, { once: true })
    child.once('close', () => signal.removeEventListener('abort', abort))
  }
  return child
}

/** Reads a stream to its end; `encoding` is that of the text, or 'buffer'. */
function collect (stream, encoding) {
  const pieces = []
  stream?.on('data', piece => pieces.push(piece))
  return () => {
    const bytes = Buffer.concat(pieces)
    return encoding === 'buffer' ? bytes : bytes.toString(encoding)
  }
}

/**
 * Runs a command to its end. The promise is also the ChildProcess. It is fulfilled with the output and the report, and
 * rejected with a CommandError that has the same fields, unless the exit code is 0 or `reject` is false.
 */
function run (command, args = [], options = {}) {
  if (!Array.isArray(args)) [args, options] = [[], args]
  options = { encoding: 'utf8', reject: true, stripFinalNewline: true, input: '', ...options }
  if (options.pty || [].concat(options.stdio)[0] === 'ignore') options.input = undefined
  let child
  const promise = new Promise((resolve, reject) => {
    child = spawn(command, args, options)
    if (options.pty) child.stdin?.end()
    const [stdout, stderr] = [child.stdout, child.stderr].map(stream => collect(stream, options.encoding))
    let failure = null
    child.once('error', error => { failure = error })
    child.once('close', () => {
      const result = resultOf(child, command, args, stdout(), stderr(), options)
      if (failure) return reject(Object.assign(failure, result))
      if (options.signal?.aborted && child.cancelled) return reject(new AbortError(options.signal.reason, result))
      if (!result.failed || !options.reject) return resolve(result)
      reject(new CommandError(messageOf(result), result))
    })
  })
  for (const name of ['then', 'catch', 'finally']) child[name] = promise[name].bind(promise)
  return child
}

function resultOf (child, command, args, stdout, stderr, options) {
  const strip = text => typeof text === 'string' && options.stripFinalNewline ? text.replace(/\r?\n$/, '') : text
  const { report, exitCode, signalCode } = child
  return {
    command: [command, ...args].join(' '),
    stdout: strip(stdout),
    stderr: strip(stderr),
    exitCode: exitCode ?? undefined,
    signal: signalCode ?? undefined,
    failed: report === null || report.exit_code !== 0,
    timedOut: report?.reason === 'deadline',
    isCanceled: child.cancelled === true,
    leftovers: report?.leftovers?.count ?? 0,
    report
  }
}

function messageOf (result) {
  const how = result.timedOut
    ? 'timed out'
    : result.isCanceled
      ? 'was cancelled'
      : result.signal
        ? `was killed with ${result.signal}`
        : `failed with exit code ${result.report.exit_code}`
  return `Command ${how}: ${result.command}${result.stderr ? `\n${result.stderr}` : ''}`
}

/** Runs a script of /bin/sh, as child_process.exec does, with a callback or as a promise. */
function exec (script, options = {}, callback = undefined) {
  if (typeof options === 'function') [options, callback] = [{}, options]
  const child = run(script, [], { stripFinalNewline: false, ...options, shell: options.shell ?? true })
  if (callback) {
    child.then(
      result => callback(null, result.stdout, result.stderr),
      error => callback(error, error.stdout ?? '', error.stderr ?? '')
    )
  }
  return child
}

module.exports = { spawn, run, exec, ChildProcess, PinfoldError, CommandError, AbortError }
