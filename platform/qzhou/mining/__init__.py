"""Mining: encode every text, search the nearest documents of each query, choose hard negatives among them."""
