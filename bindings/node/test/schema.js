'use strict'
// A validator for the part of JSON Schema 2020-12 that docs/serve.schema.json uses. It fails on other keywords.

const { deepStrictEqual } = require('node:assert')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')

const schema = JSON.parse(readFileSync(join(__dirname, '../../../docs/serve.schema.json'), 'utf8'))

const isObject = value => value !== null && typeof value === 'object' && !Array.isArray(value)
const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name)

function isEqual (a, b) {
  try {
    deepStrictEqual(a, b)
    return true
  } catch {
    return false
  }
}

const types = {
  null: value => value === null,
  boolean: value => typeof value === 'boolean',
  string: value => typeof value === 'string',
  number: value => typeof value === 'number',
  integer: value => Number.isInteger(value),
  array: Array.isArray,
  object: isObject
}

const keywords = {
  $ref: (reference, value) => check(schema.$defs[reference.replace('#/$defs/', '')], value),
  anyOf: (rules, value) => rules.some(rule => check(rule, value)),
  oneOf: (rules, value) => rules.filter(rule => check(rule, value)).length === 1,
  allOf: (rules, value) => rules.every(rule => check(rule, value)),
  type: (names, value) => [].concat(names).some(name => types[name](value)),
  const: (constant, value) => isEqual(constant, value),
  enum: (values, value) => values.some(known => isEqual(known, value)),
  required: (names, value) => !isObject(value) || names.every(name => has(value, name)),
  properties: (rules, value) => !isObject(value) ||
    Object.entries(rules).every(([name, rule]) => !has(value, name) || check(rule, value[name])),
  additionalProperties: (rule, value, { properties = {} }) => !isObject(value) ||
    Object.keys(value).every(name => has(properties, name) || check(rule, value[name])),
  items: (rule, value) => !Array.isArray(value) || value.every(item => check(rule, item)),
  minItems: (count, value) => !Array.isArray(value) || value.length >= count,
  maxItems: (count, value) => !Array.isArray(value) || value.length <= count,
  minLength: (count, value) => typeof value !== 'string' || [...value].length >= count,
  maxLength: (count, value) => typeof value !== 'string' || [...value].length <= count,
  uniqueItems: (_, value) => !Array.isArray(value) || new Set(value.map(item => JSON.stringify(item))).size === value.length,
  minimum: (bound, value) => typeof value !== 'number' || value >= bound,
  maximum: (bound, value) => typeof value !== 'number' || value <= bound
}

const ignored = ['$schema', '$defs', 'title', 'description', 'default', 'format']

function check (rule, value) {
  if (typeof rule === 'boolean') return rule
  return Object.entries(rule).every(([keyword, argument]) => {
    if (ignored.includes(keyword)) return true
    if (!keywords[keyword]) throw new Error(`this validator does not know the keyword ${keyword}`)
    return keywords[keyword](argument, value, rule)
  })
}

/** Returns whether a message matches the schema. */
module.exports = message => check(schema, message)
