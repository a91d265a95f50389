SELECT name FROM system.databases WHERE name = {name:String}
