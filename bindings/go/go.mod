module pinfold

go 1.19
