/// <reference types="node" />
import { EventEmitter } from 'node:events'
import { Readable, Writable } from 'node:stream'

/** The limits of `pinfold run`, with the same names and values: `{ memory: '512M', pids: 100 }`. */
export interface Limits {
  memory?: string | number
  memory_high?: string | number
  swap?: string | number
  oom_group?: boolean
  pids?: number
  cpus?: number
  cpu_weight?: number
  cpuset?: string
  io_weight?: number
  io_max?: string[]
  rlimit?: string[]
  nice?: number
}

/** What pinfold says about a command that is over: docs/report.schema.json has all fields. */
export interface Report {
  reason: 'exited' | 'deadline' | 'idle' | 'not_ready' | 'stopped' | 'killed' | 'oom' | 'guard_lost' | 'cancelled' |
    'spawn_failed' | (string & {})
  /** As shells report it: 128+N for a signal, 124 for a deadline. */
  exit_code: number
  error: string | null
  killed: boolean
  leftovers: { count: number, processes: Array<{ pid: number, command_line: string }> }
  [field: string]: unknown
}

type Stream = 'pipe' | 'ignore'
type OutputStream = Stream | 'inherit'

export interface SpawnOptions {
  cwd?: string | URL
  /** All variables of the command; by default those of this program. */
  env?: NodeJS.ProcessEnv
  /** Runs the command in /bin/sh, or in this shell. */
  shell?: boolean | string
  /** The default is pipes. */
  stdio?: 'pipe' | 'ignore' | [Stream?, OutputStream?, OutputStream?]
  /** The whole standard input. */
  input?: string | Uint8Array
  /** Stops the command after this many milliseconds. */
  timeout?: number
  /** Kills the command this many milliseconds after the stop signal. By default 10,000. */
  grace?: number
  /** The signal that stops the command: SIGTERM by default. */
  killSignal?: NodeJS.Signals | number
  /** Stops every process of the command when the program aborts this signal. */
  signal?: AbortSignal
  /** Sends standard error to standard output, in the order in which the command writes. */
  merged?: boolean
  /** Gives the command a terminal. Its whole output is `stdout`. */
  pty?: boolean | { rows?: number, columns?: number, echo?: boolean }
  /** The name of the command in reports and in `pinfold ps`. */
  name?: string
  limits?: Limits
  /** What the command may touch: docs/sandbox.md. */
  sandbox?: Record<string, unknown>
  /** The user that the command runs as. Only root can do this. */
  user?: string
}

export interface RunOptions extends SpawnOptions {
  /** 'buffer' for bytes; 'utf8' by default. */
  encoding?: BufferEncoding | 'buffer'
  /** Whether the promise is rejected if the command fails: true by default. */
  reject?: boolean
  /** Whether the last newline of the output is removed: true by default. */
  stripFinalNewline?: boolean
}

/** The interface of child_process.ChildProcess, for every process of a command. */
export class ChildProcess extends EventEmitter {
  readonly pid: number | undefined
  readonly stdin: Writable | null
  readonly stdout: Readable | null
  readonly stderr: Readable | null
  readonly stdio: [Writable | null, Readable | null, Readable | null]
  readonly exitCode: number | null
  readonly signalCode: NodeJS.Signals | null
  readonly killed: boolean
  readonly spawnfile: string
  readonly spawnargs: string[]
  /** Null before the event `close`. */
  readonly report: Report | null
  /** Sends a signal to the main process. SIGKILL kills every process of the command at once. */
  kill(signal?: NodeJS.Signals | number): boolean
  /** Stops every process of the command: the stop signal, then the grace period, then SIGKILL. A second call kills. */
  cancel(): void
  resize(rows: number, columns: number): void
  on(event: 'spawn', listener: () => void): this
  /** The main process has ended; other processes of the command may still run. */
  on(event: 'exit', listener: (code: number | null, signal: NodeJS.Signals | null) => void): this
  /** No process of the command is left, and its output has been read. */
  on(event: 'close', listener: (code: number | null, signal: NodeJS.Signals | null) => void): this
  on(event: 'error', listener: (error: PinfoldError) => void): this
  on(event: string, listener: (...args: any[]) => void): this
}

export interface Result<Text = string> {
  command: string
  stdout: Text
  stderr: Text
  exitCode: number | undefined
  signal: NodeJS.Signals | undefined
  failed: boolean
  timedOut: boolean
  isCanceled: boolean
  /** How many processes the command had left behind; pinfold has ended them. */
  leftovers: number
  report: Report | null
}

/** A command, and the promise of its result. */
export type Running<Text = string> = ChildProcess & Promise<Result<Text>>

export class PinfoldError extends Error {
  code: string
}
/** A command failed. It has the fields of the result. */
export class CommandError extends PinfoldError implements Result<any> {
  command: string
  stdout: any
  stderr: any
  exitCode: number | undefined
  signal: NodeJS.Signals | undefined
  failed: boolean
  timedOut: boolean
  isCanceled: boolean
  leftovers: number
  report: Report | null
}
/** The command was ended through its AbortSignal. It has the fields of the result. */
export class AbortError extends PinfoldError {}

export function spawn(command: string, options?: SpawnOptions): ChildProcess
export function spawn(command: string, args: readonly string[], options?: SpawnOptions): ChildProcess

export function run(command: string, args: readonly string[], options: RunOptions & { encoding: 'buffer' }): Running<Buffer>
export function run(command: string, args?: readonly string[], options?: RunOptions): Running
export function run(command: string, options: RunOptions): Running

type ExecCallback = (error: PinfoldError | null, stdout: string, stderr: string) => void
export function exec(script: string, callback?: ExecCallback): Running
export function exec(script: string, options: RunOptions, callback?: ExecCallback): Running
