using System.CommandLine;
using System.Globalization;
using System.Text;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Tokens of the admin API.</summary>
internal static class TokenCommands
{
    private static readonly string[] Headings = ["Id", "Name", "Role", "Sees", "Created", "Expires", "Description"];

    public static void AddTo(CommandSet commands)
    {
        AddCreate(commands);
        commands.Add("list_token", "Lists the tokens of the admin API; their secrets are kept nowhere", [], async (context, cancel) =>
        {
            TokenList list = await context.Client.GetAsync("v1/tokens", ApiJson.Default.TokenList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.TokenList)) return ExitCode.Done;
            context.Printer.Line($"{list.Tokens.Count} tokens returned.");
            context.Printer.Table(Headings, [.. list.Tokens.Select(Row)]);
            return ExitCode.Done;
        });
        Option<string> gone = new("--token_name", "-n") { Description = "Name of the token, or its id", HelpName = "NAME", Required = true };
        commands.Add("delete_token", "Revokes a token: it is worth nothing from now on", [gone], async (context, cancel) =>
        {
            string wanted = context.Get(gone)!;
            TokenList list = await context.Client.GetAsync("v1/tokens", ApiJson.Default.TokenList, cancel);
            TokenInfo token = list.Tokens.FirstOrDefault(t => t.Name == wanted) ?? list.Tokens.FirstOrDefault(t => t.Id == wanted)
                ?? throw new CliException($"there is no token '{wanted}'; pfcli list_token shows all");
            context.Confirm($"revoking token {token.Name} ({token.Role})");
            await context.Client.DeleteAsync("v1/tokens/" + Uri.EscapeDataString(token.Id), cancel);
            context.Printer.Line($"Token {token.Name} revoked.");
            return ExitCode.Done;
        },
        "pfcli delete_token -n backup");
    }

    private static void AddCreate(CommandSet commands)
    {
        Option<string> name = new("--token_name", "-n") { Description = "Name of the token", HelpName = "NAME", Required = true };
        Inputs.CheckName(name);
        var role = new Option<string>("--role") { Description = "viewer looks, operator changes volumes, admin changes the node", HelpName = "ROLE", DefaultValueFactory = _ => "viewer" };
        role.AcceptOnlyFromAmong("viewer", "operator", "admin");
        var tenant = new Option<string?>("--tenant", "-t") { Description = "It sees only this tenant's volumes", HelpName = "TENANT" };
        var volumes = new Option<string[]>("--volume_name", "-v") { Description = "It sees only this volume; repeatable", HelpName = "NAME", Arity = ArgumentArity.ZeroOrMore };
        Option<long?> expires = PolicyCommands.Time("--expires", "It is worth nothing after so long, for instance 30d (default: never)");
        var description = new Option<string?>("--description") { Description = "Free text", HelpName = "TEXT" };
        var file = new Option<string?>("--out", "-o") { Description = "Write the token to this new file, which only you can read, instead of showing it", HelpName = "FILE" };
        commands.Add("create_token", "Makes a token of the admin API, which is shown this once", [name, role, tenant, volumes, expires, description, file], async (context, cancel) =>
        {
            string? path = context.Get(file);
            if (path is not null && File.Exists(path)) throw new CliException($"'{path}' exists; name a new file");
            var request = new CreateToken(
                context.Get(name)!, context.Get(role)!, context.Get(tenant), context.Get(volumes) is { Length: > 0 } named ? named : null,
                context.Get(expires), context.Get(description));
            TokenCreated made = await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/tokens", request, ApiJson.Default.CreateToken, ApiJson.Default.TokenCreated, cancel);
            if (path is not null)
            {
                Write(path, made.Token);
                made = made with { Token = "" };
            }

            if (context.Printer.TryJson(made, ApiJson.Default.TokenCreated)) return ExitCode.Done;
            context.Printer.Table(Headings, [Row(made.Info)]);
            context.Printer.Line(path is null ? $"Token, shown this once: {made.Token}" : $"Token written to {path}; use it with --token-file.");
            return ExitCode.Done;
        },
        "pfcli create_token -n grafana --role viewer -o grafana.token",
        "pfcli create_token -n acme-ops --role operator -t acme --expires 90d",
        "pfcli create_token -n backup-db --role operator -v db");
    }

    private static void Write(string path, string token)
    {
        try
        {
            var options = new FileStreamOptions { Mode = FileMode.CreateNew, Access = FileAccess.Write };
            if (!OperatingSystem.IsWindows()) options.UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite;
            using var stream = new FileStream(path, options);
            stream.Write(Encoding.ASCII.GetBytes(token + "\n"));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"the token was made but '{path}' cannot be written ({e.Message}); revoke it with delete_token and make another", inner: e);
        }
    }

    private static string[] Row(TokenInfo t) =>
    [
        t.Id, t.Name, t.Role, t.Tenant is { } tenant ? "tenant " + tenant : t.Volumes is { } volumes ? string.Join(", ", volumes) : "all",
        t.CreatedAt.ToString("u", CultureInfo.InvariantCulture),
        t.ExpiresAt is { } until ? until.ToString("u", CultureInfo.InvariantCulture) + (t.Expired ? " (over)" : "") : "never", t.Description ?? "",
    ];
}
