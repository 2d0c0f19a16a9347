'use strict'

const { test } = require('node:test')
const assert = require('node:assert')
const { once } = require('node:events')
const { spawn, exec } = require('..')
const { allEnded, checked, next, skip, TREE } = require('./support')
const isValid = require('./schema')

test('the validator finds mistakes', () => {
  for (const [message, valid] of [
    [{ op: 'cancel', id: 'a' }, true],
    [{ op: 'cancel', id: 'a', kill: 1 }, false],
    [{ op: 'cancel', id: 'a', now: true }, false],
    [{ op: 'submit', id: 'a', job: { command: [] } }, false],
    [{ op: 'submit', id: 'a', job: { command: ['a'], timeout: -1 } }, false],
    [{ op: 'resize', id: 'a', rows: 70000, columns: 1 }, false],
    [{ event: 'stdin', id: 'a', request: 1, bytes: 5 }, true],
    [{ event: 'stdin', id: 'a', request: 1, bytes: '5' }, false]
  ]) assert.strictEqual(isValid(message), valid, JSON.stringify(message))
})

test('events and streams as child_process has them', { skip }, async () => {
  const child = spawn('sh', ['-c', 'cat; echo err >&2; exit 3'])
  const received = []
  for (const event of ['spawn', 'exit', 'close']) child.on(event, (...values) => received.push([event, ...values]))
  child.stdin.end('given')
  const [out, err] = [[], []]
  child.stdout.on('data', bytes => out.push(bytes))
  child.stderr.on('data', bytes => err.push(bytes))
  await once(child, 'close')
  assert.deepStrictEqual(received, [['spawn'], ['exit', 3, null], ['close', 3, null]])
  assert.deepStrictEqual([Buffer.concat(out).toString(), Buffer.concat(err).toString()], ['given', 'err\n'])
  assert.strictEqual(child.report.reason, 'exited')
  assert.ok(checked() > 5)
})

test('every byte arrives', { skip }, async () => {
  const all = Buffer.alloc(2_000_000)
  for (let at = 0; at < all.length; at++) all[at] = (at * at) >> 7
  const child = spawn('cat')
  child.stdin.end(all)
  const pieces = []
  for await (const piece of child.stdout) pieces.push(piece)
  assert.ok(Buffer.concat(pieces).equals(all))
})

test('a conversation', { skip }, async () => {
  const child = spawn('cat')
  for (const word of ['one\n', 'zwei ä\n']) {
    child.stdin.write(word)
    assert.strictEqual(await next(child.stdout), word)
  }
  const closed = once(child, 'close')
  child.stdin.end()
  await closed
})

test('a stream that is not read stops only its own command', { skip }, async () => {
  const slow = spawn('sh', ['-c', 'while :; do echo 0123456789; done'])
  await once(slow, 'spawn')
  for (let number = 0; number < 20; number++) await exec('true')
  const held = slow.stdout.readableLength
  const closed = once(slow, 'close')
  slow.stdout.destroy()
  slow.stderr.resume()
  const [code, signal] = await closed
  assert.deepStrictEqual([code, signal], [null, 'SIGPIPE'])
  assert.ok(held <= 512 * 1024, `${held}`)
})

test('kill and cancel end every process', { skip }, async () => {
  for (const end of [child => child.kill('SIGKILL'), child => child.kill(), child => child.cancel()]) {
    const child = spawn('sh', ['-c', TREE])
    const pids = (await next(child.stdout)).trim().split(' ')
    assert.strictEqual(pids.length, 3)
    assert.strictEqual(Number(pids[0]), child.pid)
    const closed = once(child, 'close')
    end(child)
    child.stdout.resume()
    const [code, signal] = await closed
    assert.deepStrictEqual([code, ['SIGKILL', 'SIGTERM'].includes(signal)], [null, true])
    await allEnded(pids)
    assert.strictEqual(child.kill(), false)
  }
})

test('input that is not read', { skip }, async () => {
  const child = spawn('sh', ['-c', 'exec <&-; sleep 0.1'], { stdio: ['pipe', 'ignore', 'ignore'] })
  assert.deepStrictEqual([child.stdout, child.stderr], [null, null])
  child.stdin.end(Buffer.alloc(1_000_000))
  const closed = once(child, 'close')
  const [error] = await once(child.stdin, 'error')
  assert.strictEqual(error.code, 'EPIPE')
  await closed
})

test('a terminal', { skip }, async () => {
  const child = spawn('sh', ['-c', "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.05; done"],
    { pty: { rows: 10, columns: 20 } })
  const closed = once(child, 'close')
  assert.strictEqual(await next(child.stdout), '10 20\r\n')
  child.resize(30, 40)
  assert.strictEqual(await next(child.stdout), '30 40\r\n')
  await closed
})

test('a command that cannot be started', { skip }, async () => {
  for (const [command, code] of [['no-such-command', 'ENOENT'], ['/etc/passwd', 'EACCES']]) {
    const child = spawn(command)
    const [error] = await once(child, 'error')
    assert.deepStrictEqual([error.code, error.path], [code, command])
  }
  const child = spawn('true', { limits: { rlimit: ['files=1'] } })
  const [error] = await once(child, 'error')
  assert.match(error.message, /files/)
  assert.throws(() => spawn('true', { stdio: 'inherit' }), /stdin can be 'pipe', 'ignore'/)
})
