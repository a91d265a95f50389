SELECT count() AS stored FROM ${target} ${final} WHERE source = {source:String}
