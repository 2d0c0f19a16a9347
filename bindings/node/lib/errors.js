'use strict'

/** An error of pinfold. `code` says which one. */
class PinfoldError extends Error {
  constructor (message, code, cause) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'PinfoldError'
    this.code = code
  }
}

/** A command did not succeed. It has the fields of the result, and the report. */
class CommandError extends PinfoldError {
  constructor (message, result) {
    super(message, 'ERR_PINFOLD_COMMAND')
    this.name = 'CommandError'
    Object.assign(this, result)
  }
}

/** The command was ended through its AbortSignal. */
class AbortError extends PinfoldError {
  constructor (cause, result) {
    super('The operation was aborted', 'ABORT_ERR', cause)
    this.name = 'AbortError'
    Object.assign(this, result)
  }
}

module.exports = { PinfoldError, CommandError, AbortError }
