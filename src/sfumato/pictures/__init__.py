"""Pictures as such: their pixels, opening what strangers send, the invisible watermark, labelled sheets."""
