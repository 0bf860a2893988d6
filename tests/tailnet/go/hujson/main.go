// hujson reads HuJSON (JSON with comments and trailing commas) on standard input and writes standard JSON.
package main

import (
	"io"
	"log"
	"os"

	"github.com/tailscale/hujson"
)

func main() {
	log.SetFlags(0)
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	standard, err := hujson.Standardize(text)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(standard); err != nil {
		log.Fatal(err)
	}
}
