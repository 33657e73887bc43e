using System.CommandLine;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Options that several commands share, checked before anything is sent.</summary>
internal static class Inputs
{
    public static Option<string> Volume(string description = "Name of the volume")
    {
        var option = new Option<string>("--volume_name", "-v") { Description = description, HelpName = "NAME", Required = true };
        CheckName(option);
        return option;
    }

    public static void CheckName(Option<string> option) => option.Validators.Add(result =>
    {
        if (result.Tokens.Count == 1 && !VolumeName.IsValid(result.Tokens[0].Value, out string? reason))
            result.AddError($"'{result.Tokens[0].Value}': {reason}");
    });

    public static Option<ulong> Size(string name, string? alias, string description, bool required) => new(
        name, alias is null ? [] : [alias])
    {
        Description = description,
        HelpName = "SIZE",
        Required = required,
        CustomParser = result =>
        {
            if (!SizeText.TryParse(result.Tokens.Count == 1 ? result.Tokens[0].Value : null, out ulong bytes, out string reason))
                result.AddError(reason);
            return bytes;
        },
    };

    public static Option<bool> Thin() => new("--thin")
    {
        Description = "Promise no room: it takes what is written, as long as there is room; =false promises room for all of its size",
    };

    public static string PathOf(string volume) => "v1/volumes/" + Uri.EscapeDataString(volume);

    public static Task<VolumeInfo> VolumeAsync(CommandContext context, string volume, CancellationToken cancel) =>
        context.Client.GetAsync(PathOf(volume), ApiJson.Default.VolumeInfo, cancel);

    public static async Task<DiskInfo> DiskAsync(CommandContext context, string disk, CancellationToken cancel)
    {
        DiskList list = await context.Client.GetAsync("v1/disks", ApiJson.Default.DiskList, cancel);
        bool isId = Guid.TryParse(disk, out Guid id);
        return list.Disks.FirstOrDefault(d => (isId && d.Id == id) || d.Name == disk)
            ?? throw new CliException($"there is no disk '{disk}'; pfcli list_disk shows their names and ids");
    }
}
