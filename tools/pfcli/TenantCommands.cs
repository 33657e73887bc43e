using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Tenants, who share the node without seeing one another.</summary>
internal static class TenantCommands
{
    private static readonly string[] Headings = ["Id", "Name", "Volumes", "VolumesMax", "Provisioned", "ProvisionedMax", "Used", "IopsMax", "Description"];

    public static void AddTo(CommandSet commands)
    {
        AddCreate(commands);
        AddSet(commands);
        commands.Add("list_tenant", "Lists the tenants, what they may have and what they have", [], async (context, cancel) =>
        {
            TenantList list = await context.Client.GetAsync("v1/tenants", ApiJson.Default.TenantList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.TenantList)) return ExitCode.Done;
            context.Printer.Line($"{list.Tenants.Count} tenants returned.");
            context.Printer.Table(Headings, [.. list.Tenants.Select(Row)]);
            return ExitCode.Done;
        });
        Option<string> shown = Name();
        commands.Add("show_tenant", "Shows one tenant", [shown], async (context, cancel) =>
            Show(context, await context.Client.GetAsync(PathOf(context.Get(shown)!), ApiJson.Default.TenantInfo, cancel)));
        Option<string> gone = Name();
        commands.Add("delete_tenant", "Deletes a tenant that has no volumes any more; its tokens are revoked", [gone], async (context, cancel) =>
        {
            string name = context.Get(gone)!;
            TenantInfo tenant = await context.Client.GetAsync(PathOf(name), ApiJson.Default.TenantInfo, cancel);
            context.Confirm($"deleting tenant {name} and its tokens");
            await context.Client.DeleteAsync(string.Create(CultureInfo.InvariantCulture, $"{PathOf(name)}?revision={tenant.Revision}"), cancel);
            context.Printer.Line($"Tenant {name} deleted.");
            return ExitCode.Done;
        });
    }

    private static Option<string> Name()
    {
        var option = new Option<string>("--tenant", "-t") { Description = "Name of the tenant", HelpName = "NAME", Required = true };
        Inputs.CheckName(option);
        return option;
    }

    private static string PathOf(string tenant) => "v1/tenants/" + Uri.EscapeDataString(tenant);

    private static void AddCreate(CommandSet commands)
    {
        Option<string> name = Name();
        Option<ulong> bytes = Inputs.Size("--bytes", null, "Sizes of its volumes together, at most (default: no limit)", required: false);
        var volumes = new Option<int?>("--volumes") { Description = "Its volumes, at most (default: no limit)", HelpName = "N" };
        var iops = new Option<ulong?>("--iops") { Description = "Operations a second of its volumes together (default: no limit)", HelpName = "N" };
        var description = new Option<string?>("--description") { Description = "Free text", HelpName = "TEXT" };
        var adopt = new Option<bool>("--adopt") { Description = "What is named NAME.SOMETHING already becomes the tenant's" };
        commands.Add("create_tenant", "Makes a tenant, to whom belongs whatever is named NAME.SOMETHING", [name, bytes, volumes, iops, description, adopt], async (context, cancel) =>
        {
            var request = new CreateTenant(
                context.Get(name)!, context.IsGiven(bytes) ? context.Get(bytes) : null, context.Get(volumes), context.Get(iops), context.Get(description), context.Get(adopt));
            return Show(context, await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/tenants", request, ApiJson.Default.CreateTenant, ApiJson.Default.TenantInfo, cancel));
        },
        "pfcli create_tenant -t acme --bytes 2t --volumes 20 --iops 10000",
        "pfcli create_volume -v acme.db -s 100g        # a volume of that tenant");
    }

    private static void AddSet(CommandSet commands)
    {
        Option<string> name = Name();
        Option<ulong> bytes = Inputs.Size("--bytes", null, "Sizes of its volumes together, at most; 0: no limit", required: false);
        var volumes = new Option<int?>("--volumes") { Description = "Its volumes, at most; 0: no limit", HelpName = "N" };
        var iops = new Option<ulong?>("--iops") { Description = "Operations a second of its volumes together; 0: no limit", HelpName = "N" };
        var description = new Option<string?>("--description") { Description = "Free text", HelpName = "TEXT" };
        commands.Add("set_tenant", "Changes what a tenant may have; what is not named stays", [name, bytes, volumes, iops, description], async (context, cancel) =>
        {
            var unlimited = new List<string>();
            ulong? bytesMax = context.IsGiven(bytes) ? context.Get(bytes) : null, iopsMax = context.Get(iops);
            int? volumesMax = context.Get(volumes);
            if (bytesMax == 0) unlimited.Add("bytesMax");
            if (volumesMax == 0) unlimited.Add("volumesMax");
            if (iopsMax == 0) unlimited.Add("iopsMax");
            var change = new ChangeTenant(
                null, bytesMax is 0 ? null : bytesMax, volumesMax is 0 ? null : volumesMax, iopsMax is 0 ? null : iopsMax, context.Get(description), unlimited);
            return Show(context, await context.Client.ChangeAsync(
                HttpMethod.Patch, PathOf(context.Get(name)!), change, ApiJson.Default.ChangeTenant, ApiJson.Default.TenantInfo, cancel));
        },
        "pfcli set_tenant -t acme --bytes 4t --iops 0");
    }

    private static int Show(CommandContext context, TenantInfo tenant)
    {
        if (!context.Printer.TryJson(tenant, ApiJson.Default.TenantInfo)) context.Printer.Table(Headings, [Row(tenant)]);
        return ExitCode.Done;
    }

    private static string[] Row(TenantInfo t) =>
    [
        t.Name, t.Name, Text(t.Volumes), t.VolumesMax is { } most ? Text(most) : "-", SizeText.Format(t.ProvisionedBytes),
        t.BytesMax is { } bytes ? SizeText.Format(bytes) : "-", SizeText.Format(t.UsedBytes),
        t.IopsMax?.ToString(CultureInfo.InvariantCulture) ?? "-", t.Description ?? "",
    ];

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}
