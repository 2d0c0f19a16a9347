package pinfold

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
)

// The number of messages that were checked.
var checked atomic.Int64

var schema = func() (schema map[string]any) {
	text, err := os.ReadFile("../../docs/serve.schema.json")
	if err == nil {
		err = json.Unmarshal(text, &schema)
	}
	if err != nil {
		panic(err)
	}
	return schema
}()

// checkMessage panics where a message does not match docs/serve.schema.json.
func checkMessage(line []byte) {
	var message any
	if err := json.Unmarshal(line, &message); err != nil {
		panic(fmt.Sprintf("%v: %s", err, line))
	}
	if err := check(schema, message); err != nil {
		panic(fmt.Sprintf("%v: %s", err, line))
	}
	checked.Add(1)
}

// check validates a value: the part of JSON Schema 2020-12 that the schema uses. It fails on other keywords.
func check(rule any, value any) error {
	if allowed, ok := rule.(bool); ok {
		if !allowed {
			return fmt.Errorf("%v is not allowed", value)
		}
		return nil
	}
	rules := rule.(map[string]any)
	for keyword, argument := range rules {
		if err := checkKeyword(keyword, argument, rules, value); err != nil {
			return err
		}
	}
	return nil
}

func checkKeyword(keyword string, argument any, rules map[string]any, value any) error {
	object, _ := value.(map[string]any)
	list, isList := value.([]any)
	number, isNumber := value.(float64)
	switch keyword {
	case "$schema", "$defs", "title", "description", "default", "format":
	case "$ref":
		name := strings.TrimPrefix(argument.(string), "#/$defs/")
		return check(schema["$defs"].(map[string]any)[name], value)
	case "anyOf", "oneOf", "allOf":
		matches, last := 0, error(nil)
		for _, rule := range argument.([]any) {
			if err := check(rule, value); err == nil {
				matches++
			} else {
				last = err
			}
		}
		if matches == 0 || keyword == "oneOf" && matches != 1 || keyword == "allOf" && matches != len(argument.([]any)) {
			return fmt.Errorf("%d of %s match; %w", matches, keyword, last)
		}
	case "type":
		types, isMany := argument.([]any)
		if !isMany {
			types = []any{argument}
		}
		for _, name := range types {
			if name == typeOf(value) || name == "number" && isNumber {
				return nil
			}
		}
		return fmt.Errorf("%v is no %v", value, argument)
	case "const":
		if !reflect.DeepEqual(value, argument) {
			return fmt.Errorf("%v is not %v", value, argument)
		}
	case "enum":
		for _, known := range argument.([]any) {
			if reflect.DeepEqual(value, known) {
				return nil
			}
		}
		return fmt.Errorf("%v is not one of %v", value, argument)
	case "required":
		for _, name := range argument.([]any) {
			if _, ok := object[name.(string)]; object != nil && !ok {
				return fmt.Errorf("%v is missing", name)
			}
		}
	case "properties":
		for name, rule := range argument.(map[string]any) {
			if part, ok := object[name]; ok {
				if err := check(rule, part); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	case "additionalProperties":
		known, _ := rules["properties"].(map[string]any)
		for name, part := range object {
			if _, ok := known[name]; !ok {
				if err := check(argument, part); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	case "items":
		for _, item := range list {
			if err := check(argument, item); err != nil {
				return err
			}
		}
	case "minItems", "maxItems":
		length, bound := float64(len(list)), argument.(float64)
		if isList && (keyword == "minItems" && length < bound || keyword == "maxItems" && length > bound) {
			return fmt.Errorf("%s is %v", keyword, argument)
		}
	case "minLength", "maxLength":
		text, isText := value.(string)
		length, bound := float64(len([]rune(text))), argument.(float64)
		if isText && (keyword == "minLength" && length < bound || keyword == "maxLength" && length > bound) {
			return fmt.Errorf("%s is %v", keyword, argument)
		}
	case "uniqueItems":
		for i, item := range list {
			for _, other := range list[:i] {
				if reflect.DeepEqual(item, other) {
					return fmt.Errorf("%v is there twice", item)
				}
			}
		}
	case "minimum":
		if isNumber && number < argument.(float64) {
			return fmt.Errorf("%v is less than %v", number, argument)
		}
	case "maximum":
		if isNumber && number > argument.(float64) {
			return fmt.Errorf("%v is more than %v", number, argument)
		}
	default:
		return fmt.Errorf("this test does not know the keyword %s", keyword)
	}
	return nil
}

func typeOf(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case float64:
		if value == math.Trunc(value) {
			return "integer"
		}
	}
	return "number"
}

// The check finds mistakes.
func TestTheCheckFails(t *testing.T) {
	for message, valid := range map[string]bool{
		`{"op": "cancel", "id": "a"}`:                                           true,
		`{"op": "cancel", "id": "a", "kill": true}`:                             true,
		`{"op": "cancel", "id": "a", "kill": 1}`:                                false,
		`{"op": "cancel", "id": "a", "now": true}`:                              false,
		`{"op": "cancel"}`:                                                      false,
		`{"op": "submit", "id": "a", "job": {"command": ["a"]}}`:                true,
		`{"op": "submit", "id": "a", "job": {"command": []}}`:                   false,
		`{"op": "submit", "id": "a", "job": {"command": ["a"], "timeout": -1}}`: false,
		`{"op": "resize", "id": "a", "rows": 70000, "columns": 1}`:              false,
		`{"event": "stdin", "id": "a", "request": 1, "bytes": 5}`:               true,
		`{"event": "stdin", "id": "a", "request": 1, "bytes": "5"}`:             false,
		`{"event": "error", "id": 7, "request": 1, "code": "x", "message": ""}`: false,
	} {
		var value any
		if err := json.Unmarshal([]byte(message), &value); err != nil {
			t.Fatal(err)
		}
		if err := check(schema, value); (err == nil) != valid {
			t.Errorf("%s: %v", message, err)
		}
	}
}
